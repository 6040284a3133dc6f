//! The mesh's own words: policy documents, the domain types they become, and
//! the pure decisions both planes share.
//!
//! [`folder::read`] gathers the files, [`load`] makes a [`model::Mesh`] of
//! them, [`model::Mesh::view`] cuts that to one proxy. [`check`] tells
//! everything that is wrong, with file, line and column.
//!
//! This crate knows no socket, no clock, no task and no randomness: time and
//! chance are arguments. Nothing here speaks protobuf or HTTP, and nothing but
//! [`folder`] touches a disk.

mod compile;
pub mod conditions;
pub mod diagnostic;
pub mod diff;
pub mod dns;
mod document;
mod explain;
pub mod folder;
pub mod model;
pub mod places;
mod problem;
pub mod schema;
mod words;
mod yaml;

use std::path::PathBuf;

pub use self::diagnostic::{Diagnostic, Report, Severity};
pub use self::document::value::{parse_bytes, parse_time};
use self::{compile::Notes, document::Documents, model::Mesh, problem::Problems};

/// What came of a policy folder.
#[derive(Debug)]
pub struct Checked {
    /// The mesh; `None` when there were errors.
    pub mesh: Option<Mesh>,
    /// Errors and warnings.
    pub report: Report,
    /// What the Gateway API has to say of its objects, whether there were errors or not.
    pub conditions: Vec<conditions::ObjectStatus>,
    notes: Notes,
    /// Paths of the files, by the index that spans have.
    paths: Vec<PathBuf>,
}

/// Compiles policy files to a mesh.
///
/// `files` are paths relative to the policy folder and their texts, e.g. from
/// [`folder::read`]; `version` names this state of them: a Git commit, or
/// [`folder::digest`]. Warnings are dropped; see [`check`] for those.
///
/// # Errors
/// When anything is wrong: nothing of a folder with an error is used.
pub fn load(
    files: impl IntoIterator<Item = (PathBuf, String)>,
    version: String,
) -> Result<Mesh, Report> {
    let Checked { mesh, report, .. } = check(files, version);
    mesh.ok_or(report)
}

/// Compiles policy files and tells everything that is wrong or doubtful.
pub fn check(files: impl IntoIterator<Item = (PathBuf, String)>, version: String) -> Checked {
    let files: Vec<_> = files.into_iter().collect();
    let mut problems = Problems::default();
    let mut documents = Documents::default();
    for (index, (_, text)) in files.iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let parsed = yaml::parse(index, text, &mut problems);
        documents.incomplete |= !parsed.whole;
        for node in &parsed.documents {
            documents.add(node, &mut problems);
        }
    }
    let (mesh, notes, conditions) = compile::compile(&documents, &files, version, &mut problems);
    let report = problems.into_report(&files, documents.count);
    let paths = files.into_iter().map(|(path, _)| path).collect();
    Checked { mesh: report.is_ok().then_some(mesh), report, conditions, notes, paths }
}
