//! Puts a Towpath sidecar beside workloads that were never written for it: Kubernetes manifests
//! and Compose files as text, and systemd units.
//!
//! Text in, text out. Documents are never written anew: what is added goes into the text at the
//! places the parser tells, so that comments, the order of keys, quoting and line ends survive,
//! and what was added can be taken out again to the byte. Knows no files, sockets, clocks or
//! Kubernetes client, and nothing of the proxy but its command line.

mod compose;
mod diff;
mod edit;
mod emit;
mod kubernetes;
mod problem;
mod quantity;
mod record;
mod settings;
pub mod systemd;
mod tree;
mod uninject;

use std::collections::BTreeSet;

pub use crate::{diff::unified, problem::Problem};
use crate::{edit::Edits, tree::Tree};

/// How sidecars are put in.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the text is; `None` finds out.
    pub kind: Option<Kind>,
    /// The version that injects, `MAJOR.MINOR.PATCH`.
    pub version: String,
    /// Image of the proxy.
    pub image: String,
    /// Where the sidecars get their configuration. In Kubernetes: by default from
    /// [`DEFAULT_CONTROL_PLANE`].
    pub source: Option<Source>,
    /// An ordinary container in place of a native sidecar, for clusters older than 1.29.
    pub plain: bool,
    /// An init step that redirects the pod's traffic to the sidecar.
    pub intercept: bool,
    /// What makes the pods, where the text cannot say it: a pod at its admission knows only its
    /// owner.
    pub workload: Option<String>,
}

impl Options {
    /// Sidecars of this version, with nothing special.
    pub fn new(version: &str) -> Self {
        Self {
            kind: None,
            version: version.to_owned(),
            image: format!("ghcr.io/towpath/proxy:{version}"),
            source: None,
            plain: false,
            intercept: false,
            workload: None,
        }
    }

    /// Refuses what an annotation could not say either; [`inject`] asks by itself.
    ///
    /// # Errors
    /// When an image or a source cannot be given to a sidecar.
    pub fn check(&self) -> Result<(), Problem> {
        let refuse = |text: &str, help: &str| {
            Err(Problem::general(format!("`{}` cannot be given to a sidecar", text.escape_debug()))
                .help(help))
        };
        if !settings::is_word(&self.image) {
            return refuse(&self.image, "name an image in one word, without blanks");
        }
        match &self.source {
            Some(Source::ControlPlane(address)) if !settings::is_word(address) => {
                refuse(address, "give the address of a control plane, HOST:PORT")
            }
            // Compose has `FOLDER:PLACE:ro`.
            Some(Source::Policies(folder))
                if folder.is_empty() || folder.contains(|c: char| c == ':' || c.is_control()) =>
            {
                refuse(folder, "name a folder, without a colon")
            }
            _ => Ok(()),
        }
    }
}

/// Where a control plane is expected in a cluster.
pub const DEFAULT_CONTROL_PLANE: &str = "towpath-control-plane.towpath.svc:18000";

/// Where a sidecar gets its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The address of a control plane.
    ControlPlane(String),
    /// A folder of policies on the machine (Compose and systemd).
    Policies(String),
}

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Kubernetes manifests.
    Kubernetes,
    /// A Compose file.
    Compose,
}

/// A text with its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The text.
    pub text: String,
    /// Workloads that have a sidecar now, e.g. `Deployment/etl`.
    pub changed: Vec<String>,
    /// Workloads that had one and have none now.
    pub taken_out: Vec<String>,
    /// What one should know, and what was passed over and why.
    pub notes: Vec<Problem>,
}

/// Gives the workloads in `text` their sidecars; those that have one get it anew.
///
/// # Errors
/// Everything that is wrong, with its place in the file (called `file` in messages). Nothing is
/// done by halves: one problem is no output.
pub fn inject(file: &str, text: &str, options: &Options) -> Result<Outcome, Vec<Problem>> {
    let named = |problems: Vec<Problem>| problem::placed(file, text, problems);
    options.check().map_err(|problem| named(vec![problem]))?;
    let tree = parse(text).map_err(&named)?;
    let mut problems = uninject::newer(text, &tree, &options.version, options.kind);
    if !problems.is_empty() {
        return Err(named(problems));
    }
    let mut before = Edits::new(text, &tree);
    let had = uninject::plan(text, &tree, options.kind, &mut before).map_err(&named)?;
    if before.is_empty() {
        let mut outcome = add(text, &tree, options).map_err(&named)?;
        outcome.notes = named(outcome.notes);
        return Ok(outcome);
    }
    // What is there of an earlier time goes first; places are told as in the file, though.
    let bare = before.apply().map_err(|problem| named(vec![problem]))?;
    let moved = |problems: Vec<Problem>| -> Vec<Problem> {
        problems.into_iter().map(|p| p.moved(|at| before.origin(at))).collect()
    };
    let bare_tree = parse(&bare).map_err(|problems| named(moved(problems)))?;
    match add(&bare, &bare_tree, options) {
        Ok(mut outcome) => {
            outcome.notes = named(moved(outcome.notes));
            let has: BTreeSet<&String> = outcome.changed.iter().collect();
            outcome.taken_out = had.into_iter().filter(|name| !has.contains(name)).collect();
            Ok(outcome)
        }
        Err(found) => {
            problems.extend(moved(found));
            Err(named(problems))
        }
    }
}

/// Takes out what any version of [`inject`] has put in; `kind` is what the text is, `None` finds out.
///
/// # Errors
/// As [`inject`], and where what was put in has been changed so that it cannot be told apart.
pub fn uninject(file: &str, text: &str, kind: Option<Kind>) -> Result<Outcome, Vec<Problem>> {
    let named = |problems: Vec<Problem>| problem::placed(file, text, problems);
    let tree = parse(text).map_err(&named)?;
    let mut edits = Edits::new(text, &tree);
    let taken_out = uninject::plan(text, &tree, kind, &mut edits).map_err(&named)?;
    let text = edits.apply().map_err(|problem| named(vec![problem]))?;
    Ok(Outcome { text, changed: Vec::new(), taken_out, notes: Vec::new() })
}

fn parse(text: &str) -> Result<Tree, Vec<Problem>> {
    let tree = Tree::parse(text).map_err(|problem| vec![problem])?;
    match tree.template(text) {
        Some(at) => Err(vec![tree::left_in(text, at)]),
        None => Ok(tree),
    }
}

fn add(text: &str, tree: &Tree, options: &Options) -> Result<Outcome, Vec<Problem>> {
    let mut work = Work {
        text,
        tree,
        options,
        edits: Edits::new(text, tree),
        changed: Vec::new(),
        notes: Vec::new(),
    };
    let mut problems = Vec::new();
    for root in &tree.documents {
        if compose::is_compose(tree, *root, options.kind) {
            compose::inject(&mut work, *root, &mut problems);
        } else {
            kubernetes::inject(&mut work, *root, &mut problems);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let text = work.edits.apply().map_err(|problem| vec![problem])?;
    Ok(Outcome { text, changed: work.changed, taken_out: Vec::new(), notes: work.notes })
}

/// One file in the making.
struct Work<'t> {
    text: &'t str,
    tree: &'t Tree,
    options: &'t Options,
    edits: Edits<'t>,
    changed: Vec<String>,
    notes: Vec<Problem>,
}

#[cfg(test)]
mod tests;
