//! What becomes of a run's results: files, and a judgement.

use std::path::PathBuf;

use serde_json::Value;

use crate::check::Verdict;
use crate::report::{Form, Table};
use crate::stage::{print, write_file};

/// Where results go, and whether they are judged.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Judge the bars; the exit status is 1 if one falls short
    #[arg(long)]
    check: bool,
}

impl Output {
    /// Writes the files and judges. `false` if a bar falls short.
    pub(crate) fn finish(
        &self,
        json: &Value,
        preamble: &str,
        tables: &[Table],
        verdicts: &[Verdict],
    ) -> anyhow::Result<bool> {
        if let Some(path) = &self.json {
            write_file(path, &(serde_json::to_string_pretty(json)? + "\n"))?;
        }
        if let Some(path) = &self.markdown {
            let tables: Vec<String> = tables.iter().map(|t| t.render(Form::Markdown)).collect();
            write_file(path, &format!("{preamble}\n\n{}", tables.join("\n")))?;
        }
        if !self.check {
            return Ok(true);
        }
        let lines: Vec<String> = verdicts.iter().map(|v| format!("  {v}\n")).collect();
        print(&format!("bars\n{}", lines.concat()));
        let short = verdicts.iter().filter(|verdict| !verdict.met).count();
        if short > 0 {
            eprintln!("{short} of {} bars fall short", verdicts.len());
        }
        Ok(short == 0)
    }
}
