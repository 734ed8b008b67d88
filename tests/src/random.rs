//! Randomness from a seed: the same numbers for the same seed, on every machine and in every version.

/// `SplitMix64`: small, good enough to choose faults with, and of no use for secrets.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// At least `low` and less than `high`.
    ///
    /// # Panics
    /// When there is no such number.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low < high, "no number between {low} and {high}");
        low + self.next_u64() % (high - low)
    }

    /// True once in `times`, on average; never for zero.
    pub fn one_in(&mut self, times: u64) -> bool {
        times > 0 && self.between(0, times) == 0
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        let count = u64::try_from(among.len()).expect("fits");
        &among[usize::try_from(self.between(0, count)).expect("below a length")]
    }

    /// A seed for something that draws on its own.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_within_bounds() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.between(3, 9)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|number| (3..9).contains(number)));
    }
}
