//! What a route does with a request besides sending it on.

use linkerd2_proxy_api::{
    http_route::{
        HttpFailureInjector, PathModifier, RequestHeaderModifier, RequestRedirect,
        ResponseHeaderModifier, path_modifier,
    },
    http_types::{Headers, headers::Header},
    outbound::http_route::{Filter, filter::Kind},
};
use towpath_policies::model::{DirectResponse, HeaderEdit, PathRewrite, Redirect};

/// Ours removes, sets and adds, a filter of Linkerd's does so the other way round: each step is one of its own.
pub(super) fn of_request(edit: &HeaderEdit) -> Vec<Filter> {
    let steps = steps(edit).map(|(add, set, remove)| {
        Kind::RequestHeaderModifier(RequestHeaderModifier { add, set, remove })
    });
    steps.map(filter).collect()
}

/// As [`of_request`].
pub(super) fn of_response(edit: &HeaderEdit) -> Vec<Filter> {
    let steps = steps(edit).map(|(add, set, remove)| {
        Kind::ResponseHeaderModifier(ResponseHeaderModifier { add, set, remove })
    });
    steps.map(filter).collect()
}

pub(super) fn redirect(redirect: &Redirect) -> Filter {
    filter(Kind::Redirect(RequestRedirect {
        scheme: redirect.scheme.as_deref().map(Into::into),
        host: redirect.host.clone().unwrap_or_default(),
        path: redirect.path.as_ref().map(path),
        port: redirect.port.map(u32::from).unwrap_or_default(),
        status: redirect.status.into(),
    }))
}

/// The text goes into a header of Linkerd's; it sends no body.
pub(super) fn respond(response: &DirectResponse) -> Filter {
    fail(response.status, &response.body)
}

/// Rather no answer than one that the policy does not allow.
pub(super) fn refuse(why: &str) -> Filter {
    fail(500, why)
}

fn fail(status: u16, message: &str) -> Filter {
    let plain = message.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' });
    let message = plain.take(LONGEST_MESSAGE).collect::<String>().trim().to_owned();
    filter(Kind::FailureInjector(HttpFailureInjector {
        status: status.into(),
        message,
        ratio: None,
    }))
}

type Step = (Option<Headers>, Option<Headers>, Vec<String>);

fn steps(edit: &HeaderEdit) -> impl Iterator<Item = Step> {
    let remove = (!edit.remove.is_empty()).then(|| (None, None, edit.remove.clone()));
    let set = headers(&edit.set).map(|set| (None, Some(set), Vec::new()));
    let add = headers(&edit.add).map(|add| (Some(add), None, Vec::new()));
    [remove, set, add].into_iter().flatten()
}

fn headers(edits: &[(String, String)]) -> Option<Headers> {
    let header = |(name, value): &(String, String)| Header {
        name: name.clone(),
        value: value.clone().into_bytes(),
    };
    (!edits.is_empty()).then(|| Headers { headers: edits.iter().map(header).collect() })
}

fn path(rewrite: &PathRewrite) -> PathModifier {
    // A proxy refuses the whole policy for a path that is not absolute.
    let absolute = |path: &str| format!("/{}", path.strip_prefix('/').unwrap_or(path));
    let replace = match rewrite {
        PathRewrite::Full(path) => path_modifier::Replace::Full(absolute(path)),
        PathRewrite::Prefix(prefix) => path_modifier::Replace::Prefix(absolute(prefix)),
    };
    PathModifier { replace: Some(replace) }
}

fn filter(kind: Kind) -> Filter {
    Filter { kind: Some(kind) }
}

const LONGEST_MESSAGE: usize = 200;
