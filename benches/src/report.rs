//! Medians, their spread, and the table and JSON in which they are printed.

use serde::Serialize;

/// Several runs of one figure: the median to quote, the extremes to tell how noisy the machine was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no runs.
    pub fn of(runs: &[f64]) -> Option<Self> {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median < 10.0 { 2 } else { 0 };
        write!(out, "{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

/// One line of the comparison: the same load against both, round by round.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub name: String,
    pub unit: &'static str,
    pub floor: Spread,
    pub broker: Spread,
    /// Broker over floor, of the pairs of one round.
    pub ratio: Spread,
}

impl Comparison {
    /// Pairs the rounds up.
    ///
    /// # Panics
    /// When there is no round or the counts differ.
    pub fn of(name: String, unit: &'static str, floor: &[f64], broker: &[f64]) -> Self {
        assert_eq!(floor.len(), broker.len(), "every round runs both");
        let ratios: Vec<f64> =
            floor.iter().zip(broker).map(|(floor, broker)| broker / floor).collect();
        let spread = |runs: &[f64]| Spread::of(runs).expect("at least one round");
        Self { name, unit, floor: spread(floor), broker: spread(broker), ratio: spread(&ratios) }
    }
}

/// The table, aligned, for a person or a document.
pub fn table(rows: &[Comparison]) -> String {
    table_of(rows, ["floor", "broker"])
}

/// The same for two other things that were compared.
pub fn table_of(rows: &[Comparison], [first, second]: [&str; 2]) -> String {
    use std::fmt::Write as _;

    let ratio = format!("{second}/{first}");
    let mut out = format!("{:<44} {:>5} {first:>22} {second:>22} {ratio:>20}\n", "load", "unit");
    for row in rows {
        let (floor, broker, ratio) =
            (row.floor.to_string(), row.broker.to_string(), row.ratio.to_string());
        writeln!(out, "{:<44} {:>5} {floor:>22} {broker:>22} {ratio:>20}", row.name, row.unit)
            .expect("a string takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(
            Spread::of(&[4.0, 1.0, 2.0, 3.0]),
            Some(Spread { median: 2.5, min: 1.0, max: 4.0 })
        );
        assert_eq!(Spread::of(&[]), None);
    }
}
