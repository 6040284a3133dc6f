//! `towpath check`: are these policy files right?
//!
//! Exit status 0: yes, perhaps with warnings. 1: something is wrong. 2: the
//! files could not be read.

mod render;
mod sarif;

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use towpath_policies::{Checked, Report, folder};

use crate::output::print;

/// Options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath check policies                     all policy files below a folder
  towpath check policies/edge.yaml           one file by itself
  towpath check policies --explain           also what the files come to
  towpath check policies --format sarif      for code scanning

Exit status: 0 nothing wrong, 1 errors, 2 the files could not be read.")]
pub(crate) struct Args {
    /// Folder of policy files, or one file
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Say what the files come to: listeners, routes in order, terms and who set them
    #[arg(long)]
    explain: bool,

    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
}

/// Could not even look.
const EXIT_UNREADABLE: u8 = 2;

/// Runs the command.
///
/// # Errors
/// When standard output is gone.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let files = match folder::read(&args.path) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("towpath check: {error}");
            return Ok(ExitCode::from(EXIT_UNREADABLE));
        }
    };
    if files.is_empty() {
        eprintln!(
            "towpath check: no *.yaml or *.yml file below {}; name the folder of the policy files",
            args.path.display()
        );
        return Ok(ExitCode::from(EXIT_UNREADABLE));
    }
    let version = folder::digest(&files);
    let checked = towpath_policies::check(files, version);
    let explanation = if args.explain { checked.explain() } else { None };
    let root = Root::new(&args.path);
    let text = match args.format {
        Format::Text => {
            let colour = colour(io::stdout().is_terminal());
            text(&checked.report, &root, explanation.as_deref(), colour)
        }
        Format::Json => json(&checked, explanation)?,
        Format::Sarif => sarif::document(&checked.report, &root)?,
    };
    print(&text)?;
    Ok(if checked.report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Colour only for a person who has not turned it off (no-color.org).
fn colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn text(report: &Report, root: &Root, explanation: Option<&str>, colour: bool) -> String {
    let mut text = String::new();
    for diagnostic in &report.diagnostics {
        text += &render::diagnostic(diagnostic, root, colour);
        text.push('\n');
    }
    if report.left_out > 0 {
        text += &format!("and {} more\n\n", report.left_out);
    }
    if let Some(explanation) = explanation {
        text += explanation;
        text.push('\n');
    }
    text += &render::summary(report, colour);
    text
}

fn json(checked: &Checked, explanation: Option<String>) -> anyhow::Result<String> {
    let report = &checked.report;
    let mut value = serde_json::to_value(report)?;
    value["ok"] = report.is_ok().into();
    value["errors"] = report.errors().into();
    value["warnings"] = report.warnings().into();
    if let Some(explanation) = explanation {
        value["explanation"] = explanation.into();
    }
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// What the paths of diagnostics are relative to, as the person wrote it.
pub(crate) struct Root {
    folder: PathBuf,
}

impl Root {
    fn new(path: &Path) -> Self {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let folder = folder.strip_prefix(".").unwrap_or(folder).to_owned();
        Self { folder }
    }

    /// A path that can be opened from here.
    fn path(&self, file: &Path) -> PathBuf {
        self.folder.join(file)
    }
}

#[cfg(test)]
mod tests;
