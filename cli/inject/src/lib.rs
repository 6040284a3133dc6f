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
    /// Workloads that were changed, e.g. `Deployment/etl`.
    pub changed: Vec<String>,
    /// What one should know, and what was passed over and why.
    pub notes: Vec<Problem>,
}

/// Gives the workloads in `text` their sidecars; those that have one get it anew.
///
/// # Errors
/// Everything that is wrong, with its place in the file (called `file` in messages). Nothing is
/// done by halves: one problem is no output.
pub fn inject(file: &str, text: &str, options: &Options) -> Result<Outcome, Vec<Problem>> {
    let named =
        |problems: Vec<Problem>| problems.into_iter().map(|p| p.within(file)).collect::<Vec<_>>();
    let tree = parse(text).map_err(&named)?;
    let mut problems = uninject::newer(text, &tree, &options.version);
    if !problems.is_empty() {
        return Err(named(problems));
    }
    let mut before = Edits::new(text, &tree);
    uninject::plan(text, &tree, &mut before).map_err(&named)?;
    if before.is_empty() {
        let mut outcome = add(text, &tree, options).map_err(&named)?;
        outcome.notes = named(outcome.notes);
        return Ok(outcome);
    }
    // What is there of an earlier time goes first; places are told as in the file, though.
    let bare = before.apply().map_err(|problem| named(vec![problem]))?;
    let bare_tree = parse(&bare).map_err(&named)?;
    let moved = |problems: Vec<Problem>| -> Vec<Problem> {
        problems.into_iter().map(|p| p.moved(text, |at| before.origin(at))).collect()
    };
    match add(&bare, &bare_tree, options) {
        Ok(mut outcome) => {
            outcome.notes = named(moved(outcome.notes));
            Ok(outcome)
        }
        Err(found) => {
            problems.extend(moved(found));
            Err(named(problems))
        }
    }
}

/// Takes out what any version of [`inject`] has put in.
///
/// # Errors
/// As [`inject`], and where what was put in has been changed so that it cannot be told apart.
pub fn uninject(file: &str, text: &str) -> Result<Outcome, Vec<Problem>> {
    let named =
        |problems: Vec<Problem>| problems.into_iter().map(|p| p.within(file)).collect::<Vec<_>>();
    let tree = parse(text).map_err(&named)?;
    let mut edits = Edits::new(text, &tree);
    let changed = uninject::plan(text, &tree, &mut edits).map_err(&named)?;
    let text = edits.apply().map_err(|problem| named(vec![problem]))?;
    Ok(Outcome { text, changed, notes: Vec::new() })
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
        let compose = match options.kind {
            Some(kind) => kind == Kind::Compose,
            None => compose::is_compose(tree, *root),
        };
        if compose {
            compose::inject(&mut work, *root, &mut problems);
        } else {
            kubernetes::inject(&mut work, *root, &mut problems);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let text = work.edits.apply().map_err(|problem| vec![problem])?;
    Ok(Outcome { text, changed: work.changed, notes: work.notes })
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
