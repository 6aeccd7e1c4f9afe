//! What the broker has acknowledged and returned: an acknowledgement alone does not say that a message reached a queue.
//!
//! Pure: no I/O and no clock. The broker returns a message that no queue is bound for before it acknowledges it, and the
//! client hands each returned message to whichever acknowledgement it takes in next: that of another message, where the
//! broker acknowledges many at once. So a returned message is known by its id alone, and while one is about, nothing is
//! believed before every acknowledgement that is due has come: then every return has come, too.

use std::collections::HashSet;
use std::mem;

/// Acknowledged messages, until it is known which of them reached a queue.
#[derive(Debug)]
pub struct Acknowledged<M> {
    messages: Vec<(u128, M)>,
    /// The ids of what was returned; nothing for one that tells none of ours.
    returned: HashSet<Option<u128>>,
}

/// What became of acknowledged messages.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled<M> {
    /// They reached a queue.
    pub delivered: Vec<M>,
    /// They reached nobody, in the order in which they were acknowledged.
    pub returned: Vec<M>,
}

impl<M> Acknowledged<M> {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { messages: Vec::new(), returned: HashSet::new() }
    }

    /// A message was acknowledged.
    pub fn take(&mut self, id: u128, message: M) {
        self.messages.push((id, message));
    }

    /// A message came back; nothing where it does not tell its id.
    pub fn came_back(&mut self, id: Option<u128>) {
        self.returned.insert(id);
    }

    /// Whether something came back and it is not settled yet which acknowledgements are to be believed: nothing more may be
    /// published until it is.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Settles what can be, with so many messages published and not yet answered.
    pub fn settle(&mut self, unanswered: usize) -> Settled<M> {
        if self.in_doubt() && unanswered > 0 {
            return Settled { delivered: Vec::new(), returned: Vec::new() };
        }
        let came_back = mem::take(&mut self.returned);
        let mut matched = 0;
        let (mut delivered, mut returned) = (Vec::new(), Vec::new());
        for (id, message) in self.messages.drain(..) {
            if came_back.contains(&Some(id)) {
                matched += 1;
                returned.push(message);
            } else {
                delivered.push(message);
            }
        }
        if matched < came_back.len() {
            // One of these it was, and a repeat is better than a loss.
            returned.append(&mut delivered);
        }
        Settled { delivered, returned }
    }
}

impl<M> Default for Acknowledged<M> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_a_return_an_acknowledgement_is_believed_at_once() {
        let mut acknowledged = Acknowledged::new();
        acknowledged.take(1, 'a');
        assert!(!acknowledged.in_doubt());
        assert_eq!(acknowledged.settle(7), Settled { delivered: vec!['a'], returned: vec![] });
    }

    #[test]
    fn a_return_that_comes_with_another_acknowledgement_is_still_its_own() {
        let mut acknowledged = Acknowledged::new();
        acknowledged.take(1, 'a');
        acknowledged.came_back(Some(2));
        assert_eq!(acknowledged.settle(1), Settled { delivered: vec![], returned: vec![] }, "2 is not answered yet");
        acknowledged.take(2, 'b');
        assert_eq!(acknowledged.settle(0), Settled { delivered: vec!['a'], returned: vec!['b'] });
        assert!(!acknowledged.in_doubt());
    }

    #[test]
    fn what_came_back_without_a_name_may_have_been_any_of_them() {
        for name in [None, Some(9)] {
            let mut acknowledged = Acknowledged::new();
            acknowledged.take(1, 'a');
            acknowledged.came_back(name);
            assert_eq!(acknowledged.settle(0), Settled { delivered: vec![], returned: vec!['a'] });
        }
    }

    /// A broker that returns some of a window's messages, and a client that hands each return to whichever answer it takes
    /// in next, in any order within what the broker answers at once.
    fn answers(fates: &[bool], cuts: &[usize], shuffled: &[usize]) -> Vec<(usize, Option<usize>)> {
        let mut answers = Vec::new();
        let mut queue = std::collections::VecDeque::new();
        let mut from = 0;
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (fates.len() + 1)).collect();
        ends.push(fates.len());
        ends.sort_unstable();
        for end in ends {
            queue.extend((from..end).filter(|&at| fates[at]));
            let mut frame: Vec<usize> = (from..end).collect();
            frame.sort_by_key(|at| shuffled.get(*at).copied().unwrap_or(0));
            answers.extend(frame.into_iter().map(|at| (at, queue.pop_front())));
            from = end;
        }
        answers
    }

    proptest! {
        #[test]
        fn whatever_the_order_nothing_returned_is_taken_for_delivered(
            fates in prop::collection::vec(any::<bool>(), 1..40),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
            shuffled in prop::collection::vec(any::<usize>(), 40),
            looks in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut acknowledged = Acknowledged::new();
            let (mut delivered, mut returned) = (Vec::new(), Vec::new());
            let answers = answers(&fates, &cuts, &shuffled);
            for (count, (at, with)) in answers.iter().enumerate() {
                acknowledged.take(*at as u128, *at);
                if let Some(other) = with {
                    acknowledged.came_back(Some(*other as u128));
                }
                // Answers that are there are taken in together: a look comes only between what the broker said at once.
                let complete = answers[..=count].iter().all(|(seen, _)| {
                    !fates[*seen] || answers[..=count].iter().any(|(_, with)| *with == Some(*seen))
                });
                if looks[count % looks.len()] && complete {
                    let settled = acknowledged.settle(fates.len() - count - 1);
                    delivered.extend(settled.delivered);
                    returned.extend(settled.returned);
                }
            }
            let settled = acknowledged.settle(0);
            delivered.extend(settled.delivered);
            returned.extend(settled.returned);
            delivered.sort_unstable();
            returned.sort_unstable();
            let of = |fate: bool| (0..fates.len()).filter(|&at| fates[at] == fate).collect::<Vec<_>>();
            prop_assert_eq!((delivered, returned), (of(false), of(true)));
        }
    }
}
