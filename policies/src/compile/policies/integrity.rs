//! Digests of bodies.

use super::{Levels, Origin, split};
use crate::{
    diagnostic::Rule,
    document::own::{DigestName, TransferIntegrity},
    model::{DigestAlgorithm, Integrity},
    problem::{At, Problems},
};

/// What is wrong with it by itself.
pub(super) fn check(spec: &TransferIntegrity, problems: &mut Problems) {
    let off = |said: &Option<At<bool>>| said.as_ref().is_some_and(|said| !said.value);
    if let Some(algorithm) = &spec.algorithm
        && off(&spec.make)
        && off(&spec.check)
    {
        problems
            .error(Rule::NoEffect, algorithm.span, "no digest is made or checked")
            .help("set `make: true` or `check: true`, or leave `algorithm` out");
    }
}

pub(super) fn terms(
    levels: &Levels<'_>,
    note: &mut impl FnMut(&'static str, Option<Origin>),
) -> Integrity {
    let said = |field: fn(&TransferIntegrity) -> &Option<At<bool>>| {
        levels.pick(|s| field(s.integrity.as_ref()?).as_ref().map(|b| (b.value, b.span)))
    };
    let (make, origin) = split(said(|i| &i.make));
    note("make digests", origin);
    let (check, origin) = split(said(|i| &i.check));
    note("check digests", origin);
    let algorithm = levels.pick(|s| {
        let said = s.integrity.as_ref()?.algorithm.as_ref()?;
        Some((named(said.value), said.span))
    });
    let (algorithm, origin) = split(algorithm);
    note("digest algorithm", origin);
    Integrity {
        make: make.unwrap_or_default(),
        check: check.unwrap_or_default(),
        algorithm: algorithm.unwrap_or_default(),
    }
}

fn named(written: DigestName) -> DigestAlgorithm {
    match written {
        DigestName::Sha256 => DigestAlgorithm::Sha256,
        DigestName::Sha512 => DigestAlgorithm::Sha512,
    }
}
