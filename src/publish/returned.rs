//! Acknowledged messages, and which of them were returned: an acknowledgement alone does not say that a message reached a queue.
//!
//! Pure: no I/O and no clock. The broker returns a message that no queue is bound for (basic.return) before it acknowledges
//! it, and the client attaches each returned message to whichever confirm it resolves next. That can be another message's,
//! because the broker confirms many messages at once. So only its message id identifies a returned message. After a return
//! no acknowledgement counts until every message is answered, because then every return has arrived, too.

use std::collections::HashSet;
use std::mem;

/// Acknowledged messages, until it is known which of them reached a queue.
#[derive(Debug)]
pub struct Acknowledged<M> {
    messages: Vec<(u128, M)>,
    /// Ids of returned messages; `None` stands for those without a readable id.
    returned: HashSet<Option<u128>>,
}

/// What became of acknowledged messages.
#[derive(Debug, PartialEq, Eq)]
pub struct Resolved<M> {
    /// These reached a queue.
    pub delivered: Vec<M>,
    /// These reached nobody, in the order in which they were acknowledged.
    pub returned: Vec<M>,
}

impl<M> Acknowledged<M> {
    pub fn new() -> Self {
        Self { messages: Vec::new(), returned: HashSet::new() }
    }

    /// Adds an acknowledged message.
    pub fn add(&mut self, id: u128, message: M) {
        self.messages.push((id, message));
    }

    /// A message was returned; `None` where it carries no readable id.
    pub fn returned(&mut self, id: Option<u128>) {
        self.returned.insert(id);
    }

    /// Whether a message was returned and it is open which acknowledged messages reached a queue. Until that is known nothing
    /// more may be published.
    pub fn is_undecided(&self) -> bool {
        !self.returned.is_empty()
    }

    /// The messages, where nobody can say any more which of them were returned.
    pub fn into_messages(self) -> impl Iterator<Item = M> {
        self.messages.into_iter().map(|(_, message)| message)
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Decides what can be decided while so many published messages are not answered yet.
    pub fn resolve(&mut self, unanswered: usize) -> Resolved<M> {
        if self.is_undecided() && unanswered > 0 {
            return Resolved { delivered: Vec::new(), returned: Vec::new() };
        }
        let ids = mem::take(&mut self.returned);
        let mut matched = 0;
        let (mut delivered, mut returned) = (Vec::new(), Vec::new());
        for (id, message) in self.messages.drain(..) {
            if ids.contains(&Some(id)) {
                matched += 1;
                returned.push(message);
            } else {
                delivered.push(message);
            }
        }
        if matched < ids.len() {
            // One id names none of these messages, so any of them can be the returned one. A repeat is better than a loss.
            returned.append(&mut delivered);
        }
        Resolved { delivered, returned }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_return_an_acknowledgement_counts_at_once() {
        let mut acknowledged = Acknowledged::new();
        acknowledged.add(1, 'a');
        assert!(!acknowledged.is_undecided());
        assert_eq!(acknowledged.resolve(7), Resolved { delivered: vec!['a'], returned: vec![] });
    }

    #[test]
    fn a_return_that_comes_with_another_acknowledgement_is_matched_by_its_id() {
        let mut acknowledged = Acknowledged::new();
        acknowledged.add(1, 'a');
        acknowledged.returned(Some(2));
        assert_eq!(acknowledged.resolve(1), Resolved { delivered: vec![], returned: vec![] }, "2 is not answered yet");
        acknowledged.add(2, 'b');
        assert_eq!(acknowledged.resolve(0), Resolved { delivered: vec!['a'], returned: vec!['b'] });
        assert!(!acknowledged.is_undecided());
    }

    #[test]
    fn a_return_without_a_known_id_can_be_any_acknowledged_message() {
        for id in [None, Some(9)] {
            let mut acknowledged = Acknowledged::new();
            acknowledged.add(1, 'a');
            acknowledged.returned(id);
            assert_eq!(acknowledged.resolve(0), Resolved { delivered: vec![], returned: vec!['a'] });
        }
    }

    /// The answers of a broker that returns some of a window's messages, through a client that attaches each return to the
    /// confirm that it resolves next, in any order within what the broker confirms at once.
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
        fn whatever_the_order_no_returned_message_counts_as_delivered(
            fates in prop::collection::vec(any::<bool>(), 1..40),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
            shuffled in prop::collection::vec(any::<usize>(), 40),
            resolved_after in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut acknowledged = Acknowledged::new();
            let (mut delivered, mut returned) = (Vec::new(), Vec::new());
            let answers = answers(&fates, &cuts, &shuffled);
            for (count, (at, with)) in answers.iter().enumerate() {
                acknowledged.add(*at as u128, *at);
                if let Some(other) = with {
                    acknowledged.returned(Some(*other as u128));
                }
                if resolved_after[count % resolved_after.len()] {
                    let resolved = acknowledged.resolve(fates.len() - count - 1);
                    delivered.extend(resolved.delivered);
                    returned.extend(resolved.returned);
                }
            }
            let resolved = acknowledged.resolve(0);
            delivered.extend(resolved.delivered);
            returned.extend(resolved.returned);
            delivered.sort_unstable();
            returned.sort_unstable();
            let of = |fate: bool| (0..fates.len()).filter(|&at| fates[at] == fate).collect::<Vec<_>>();
            prop_assert_eq!((delivered, returned), (of(false), of(true)));
        }
    }
}
