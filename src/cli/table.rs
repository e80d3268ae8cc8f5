//! A table of two columns for a person to read.

use std::fmt;

/// Rows of a name, a value and whether it holds.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<(String, String, Option<bool>)>,
}

impl Table {
    /// A row that only tells.
    pub fn tell(&mut self, name: &str, value: impl fmt::Display) {
        self.rows.push((name.to_owned(), value.to_string(), None));
    }

    /// A row that holds or does not.
    pub fn check(&mut self, name: &str, value: impl fmt::Display, holds: bool) {
        self.rows.push((name.to_owned(), value.to_string(), Some(holds)));
    }

    /// Whether every checked row holds.
    pub fn holds(&self) -> bool {
        self.rows.iter().all(|(_, _, holds)| *holds != Some(false))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        for (name, value, holds) in &self.rows {
            let mark = match holds {
                Some(true) => "ok",
                Some(false) => "WRONG",
                None => "",
            };
            writeln!(f, "  {name:<width$}  {mark:<5}  {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_row_is_enough() {
        let mut table = Table::default();
        table.tell("kernel", "6.12");
        table.check("clocksource", "xen", true);
        assert!(table.holds());
        table.check("backward steps", 1, false);
        assert!(!table.holds());
        assert!(table.to_string().contains("WRONG  1"));
    }
}
