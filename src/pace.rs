//! How fast work comes, and so whether a thread lets it gather before it wakes for it.
//!
//! A wake-up costs 10 to 20 us of processor time in a virtual machine, which is more than the work of one file. So what
//! network drivers do with interrupts is done here with wake-ups. Where work comes now and then, each piece wakes its
//! thread at once. Where it comes steadily, what nobody waits for is taken when the thread wakes for something else. Where
//! it comes faster still, the thread pauses before it takes what has gathered.
//!
//! Pure: the caller passes the time.

use std::time::{Duration, Instant};

/// The longest mean time between two pieces of work that come steadily: some hundred a second.
const STEADY_GAP: Duration = Duration::from_micros(2500);

/// The longest at which they gather. One that follows the end of another (written, read, confirmed, the next) comes no
/// sooner than this, and is never held up.
const BUSY_GAP: Duration = Duration::from_micros(550);

/// Work that comes after so long is the first of its kind: the next few wake their threads at once, too.
const IDLE_AFTER: Duration = Duration::from_millis(10);

/// How long a busy thread lets work gather: a few files at the least pace of [`Load::Busy`], some at a higher one.
pub const GATHER: Duration = Duration::from_micros(400);

/// How long a steady thread leaves what nobody waits for, if it wakes for nothing else: longer than [`STEADY_GAP`], so that
/// the next piece of work comes first.
pub const LEAVE: Duration = Duration::from_millis(3);

/// How many gaps the mean is of, more or less.
const MEAN_OF: u32 = 8;

/// How fast work comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// Now and then.
    Idle,
    /// Some hundred pieces a second.
    Steady,
    /// Some thousand.
    Busy,
}

/// The mean time between pieces of work.
#[derive(Debug, Default)]
pub struct Pace {
    gap: Option<Duration>,
    last: Option<Instant>,
}

impl Pace {
    /// So many pieces of work have come.
    pub fn add(&mut self, pieces: usize, now: Instant) {
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        if pieces == 0 {
            return;
        }
        let since = self.last.replace(now).map_or(IDLE_AFTER, |last| now.saturating_duration_since(last));
        let mut gap = self.gap.filter(|_| since < IDLE_AFTER).unwrap_or(IDLE_AFTER);
        let each = since.min(IDLE_AFTER) / pieces;
        // More of them change the mean no further.
        for _ in 0..pieces.min(8 * MEAN_OF) {
            gap = gap - gap / MEAN_OF + each / MEAN_OF;
        }
        self.gap = Some(gap);
    }

    /// How fast it comes.
    #[must_use]
    pub fn load(&self, now: Instant) -> Load {
        match (self.gap, self.last) {
            (Some(gap), Some(last)) if now.saturating_duration_since(last) < IDLE_AFTER => match gap {
                _ if gap <= BUSY_GAP => Load::Busy,
                _ if gap <= STEADY_GAP => Load::Steady,
                _ => Load::Idle,
            },
            _ => Load::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The load after so many pieces of work with this time between them, of which so many come together.
    fn load_at(gap: Duration, rounds: u32, together: usize) -> Load {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..rounds {
            now += gap;
            pace.add(together, now);
        }
        pace.load(now)
    }

    #[test]
    fn the_load_follows_the_mean_gap() {
        let us = Duration::from_micros;
        for (gap, expected) in [(20_000, Load::Idle), (3_000, Load::Idle), (2_000, Load::Steady), (500, Load::Busy)] {
            assert_eq!(load_at(us(gap), 1000, 1), expected, "every {gap} us");
        }
        assert_eq!(load_at(us(4_000), 1000, 2), Load::Steady, "two together every 4 ms");
        assert_eq!(load_at(us(4_000), 1000, 10), Load::Busy);
        assert_eq!(load_at(us(4_000), 1000, 0), Load::Idle, "nothing is no work");
        assert_eq!(load_at(us(9_000), 2, 100_000), Load::Busy, "one large batch");
    }

    #[test]
    fn the_first_pieces_after_a_rest_are_not_held_up() {
        let ms = Duration::from_millis;
        assert_eq!((load_at(ms(2), 12, 1), load_at(ms(2), 40, 1)), (Load::Idle, Load::Steady));
        let (mut pace, start) = (Pace::default(), Instant::now());
        (1..100).for_each(|number| pace.add(1, start + Duration::from_micros(100) * number));
        let last = start + Duration::from_micros(100) * 99;
        assert_eq!(
            (pace.load(last), pace.load(last + ms(9)), pace.load(last + ms(10))),
            (Load::Busy, Load::Busy, Load::Idle)
        );
        pace.add(1, last + ms(50));
        assert_eq!(pace.load(last + ms(50)), Load::Idle);
        pace.add(1, last);
        assert_eq!(pace.load(last), Load::Idle, "a clock that stands still does no harm");
    }
}
