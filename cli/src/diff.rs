//! `towpath diff`: what would a commit change in the mesh?
//!
//! Compares what the files come to, not their text: a comment changes nothing,
//! a default written out changes nothing, a policy changes every route it
//! reaches.

mod git;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use towpath_policies::{
    Report, Severity,
    diff::{Change, ChangeKind, diff},
    folder::{self, Files},
    model::Mesh,
};

use crate::output::print;

/// Options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath diff HEAD~1 HEAD                   two commits of the repository here
  towpath diff main my-branch --path mesh    only the policies below mesh/
  towpath diff old-folder new-folder         two folders
  towpath diff HEAD ./policies               a commit and a folder

Exit status: 0 compared, 2 one side could not be read or has errors;
with --exit-code 1 when something differs.")]
pub(crate) struct Args {
    /// Old: a folder, or a commit
    #[arg(value_name = "A")]
    old: String,

    /// New: a folder, or a commit
    #[arg(value_name = "B")]
    new: String,

    /// Git repository that has the commits
    #[arg(long, value_name = "PATH", default_value = ".")]
    repo: PathBuf,

    /// Folder of the policies within the repository
    #[arg(long, value_name = "SUBFOLDER")]
    path: Option<PathBuf>,

    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Exit with 1 when something differs
    #[arg(long)]
    exit_code: bool,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Errors shown of a side that has some.
const ERRORS_SHOWN: usize = 20;

const EXIT_DIFFERENT: u8 = 1;
const EXIT_UNREADABLE: u8 = 2;

/// Runs the command.
///
/// # Errors
/// When standard output is gone.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let meshes = mesh(&args, &args.old).and_then(|old| Ok((old, mesh(&args, &args.new)?)));
    let (old, new) = match meshes {
        Ok(both) => both,
        Err(error) => {
            eprintln!("towpath diff: {error:#}");
            return Ok(ExitCode::from(EXIT_UNREADABLE));
        }
    };
    let changes = diff(&old, &new);
    let text = match args.format {
        Format::Text => text(&changes),
        Format::Json => {
            let document = serde_json::json!({
                "before": old.version,
                "after": new.version,
                "changes": changes,
            });
            serde_json::to_string_pretty(&document)? + "\n"
        }
    };
    print(&text)?;
    let different = args.exit_code && !changes.is_empty();
    Ok(if different { ExitCode::from(EXIT_DIFFERENT) } else { ExitCode::SUCCESS })
}

/// Reads and compiles one side. What is there as a folder is a folder.
fn mesh(args: &Args, side: &str) -> anyhow::Result<Mesh> {
    let (files, version) = if Path::new(side).exists() {
        let files = folder::read(Path::new(side))?;
        let version = folder::digest(&files);
        (files, version)
    } else {
        commit(args, side)?
    };
    if files.is_empty() {
        bail!("{side} has no policy files (*.yaml, *.yml){}", below(args.path.as_deref()));
    }
    match towpath_policies::load(files, version) {
        Ok(mesh) => Ok(mesh),
        Err(report) => bail!("{side} has errors, and cannot be compared\n{}", errors(&report)),
    }
}

/// The first errors of a side; all of them are for `towpath check` to tell.
fn errors(report: &Report) -> String {
    let errors = report.diagnostics.iter().filter(|d| d.severity == Severity::Error);
    let mut lines: Vec<_> = errors.take(ERRORS_SHOWN).map(ToString::to_string).collect();
    // Warnings are the first to be left out of a report.
    let left_out = if report.errors() == report.diagnostics.len() { report.left_out } else { 0 };
    let more = report.errors() - lines.len() + left_out;
    if more > 0 {
        lines.push(format!("and {more} more; towpath check shows them"));
    }
    lines.join("\n")
}

fn commit(args: &Args, side: &str) -> anyhow::Result<(Files, String)> {
    let commit = git::resolve(&args.repo, side)
        .with_context(|| format!("{side} is neither a folder nor a commit"))?;
    let files = git::files(&args.repo, &commit, args.path.as_deref())
        .with_context(|| format!("cannot read {side}"))?;
    Ok((files, commit))
}

fn below(path: Option<&Path>) -> String {
    path.map(|path| format!(" below {}", path.display())).unwrap_or_default()
}

fn text(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        text += &format!("{change}\n");
    }
    let count = |kind| changes.iter().filter(|c| c.change == kind).count();
    let (added, removed, changed) =
        (count(ChangeKind::Added), count(ChangeKind::Removed), count(ChangeKind::Changed));
    if changes.is_empty() {
        return "no difference\n".to_owned();
    }
    text + &format!("{added} added, {removed} removed, {changed} changed\n")
}

#[cfg(test)]
mod tests;
