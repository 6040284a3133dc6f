//! Files to a mesh, off the runtime's threads.

use towpath_policies::{
    conditions::ObjectStatus,
    diagnostic::{Diagnostic, Report, Rule, Severity},
    model::Mesh,
};

use crate::{source::Revision, status::Finding};

/// Warnings kept of one version.
const WARNINGS_KEPT: usize = 100;

const NO_FILES: &str = "there are no policy files (*.yaml, *.yml) here; to serve nothing on purpose, keep one without documents";

/// A version that is fit to be served.
pub(super) struct Compiled {
    pub(super) mesh: Mesh,
    pub(super) warnings: Vec<String>,
    /// What the Gateway API has to say of it.
    pub(super) objects: Vec<ObjectStatus>,
}

/// Why a version is not fit to be served.
pub(super) struct Refusal {
    pub(super) diagnostics: Vec<Finding>,
    pub(super) left_out: usize,
    pub(super) objects: Vec<ObjectStatus>,
}

/// Where a map service is asked for them, places that the gazetteer does not know are no finding.
pub(super) async fn compile(
    revision: &Revision,
    asks_for_places: bool,
) -> Result<Compiled, Refusal> {
    let whole = |message: String| {
        let diagnostics = vec![Finding { message, ..Finding::default() }];
        Refusal { diagnostics, left_out: 0, objects: Vec::new() }
    };
    if let Some(why) = &revision.unfit {
        return Err(whole(why.clone()));
    }
    if revision.files.is_empty() {
        // Far more often a wrong folder than the wish to end all traffic.
        return Err(whole(NO_FILES.to_owned()));
    }
    let (files, version) = (revision.files.clone(), revision.version.clone());
    let checked = tokio::task::spawn_blocking(move || towpath_policies::check(files, version));
    let checked = match checked.await {
        Ok(checked) => checked,
        // A bug of ours, but no reason to serve nothing.
        Err(stopped) => return Err(whole(format!("validation broke off: {stopped}"))),
    };
    let objects = checked.conditions;
    let Report { diagnostics, left_out, .. } = checked.report;
    let (errors, warnings): (Vec<_>, Vec<_>) = diagnostics
        .into_iter()
        .filter(|found| !(asks_for_places && found.rule == Rule::UnknownPlace))
        .map(finding)
        .partition(|(severity, _)| *severity == Severity::Error);
    let findings = |list: Vec<(Severity, Finding)>| list.into_iter().map(|(_, finding)| finding);
    let Some(mesh) = checked.mesh else {
        return Err(Refusal { diagnostics: findings(errors).collect(), left_out, objects });
    };
    let told = revision.warnings.iter().cloned();
    let told = told.chain(findings(warnings).map(|finding| finding.to_string()));
    Ok(Compiled { mesh, warnings: told.take(WARNINGS_KEPT).collect(), objects })
}

fn finding(diagnostic: Diagnostic) -> (Severity, Finding) {
    let Diagnostic { severity, file, line, message, help, .. } = diagnostic;
    (severity, Finding { file, line, message, help })
}
