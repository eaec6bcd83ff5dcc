//! What is wrong with a config file: where, what was found, what was expected.

use std::fmt;
use std::path::PathBuf;

/// One problem, shown as `file:line:column: what, what was expected`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        // What was found is quoted: in a terminal its control characters would do something.
        self.message.chars().try_for_each(|letter| match letter.is_control() {
            true => write!(f, "{}", letter.escape_default()),
            false => write!(f, "{letter}"),
        })
    }
}

/// Every problem of a file, one a line; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_whatever_was_found() {
        let message = "found 3\0\u{1b}[2J\n, expected a number".to_owned();
        let problem = Problem { file: "teal.toml".into(), line: 3, column: 15, message };
        assert_eq!(problem.to_string(), "teal.toml:3:15: found 3\\u{0}\\u{1b}[2J\\n, expected a number");
    }
}
