//! The variables by which programs find their proxy.

use std::{ffi::OsString, net::SocketAddr};

/// Those that say where the proxy is. `ALL_PROXY` is not among them: it would send here what the
/// sidecar does not speak.
const PROXY: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "GRPC_PROXY"];
/// Those that would compete with them.
const COMPETING: [&str; 2] = ["ALL_PROXY", "all_proxy"];
/// Those that say what goes around it.
const NO_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// The command's own loopback. Most programs know names and addresses, only some know networks.
const AROUND: &str = "localhost,127.0.0.1,::1";

/// A variable that names another proxy already.
pub(super) fn taken(given: &dyn Fn(&str) -> Option<OsString>) -> Option<&'static str> {
    PROXY.into_iter().chain(COMPETING).find(|name| given(name).is_some())
}

/// What a command is given to find its sidecar at this address, and to be served there.
pub(super) fn variables(
    address: SocketAddr,
    credentials: &str,
    given: &dyn Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    let proxy = OsString::from(format!("http://{credentials}@{address}"));
    let mut around = OsString::from(AROUND);
    if let Some(more) = NO_PROXY.into_iter().find_map(given) {
        around.push(",");
        around.push(more);
    }
    let proxies = PROXY.into_iter().map(|name| (name, proxy.clone()));
    proxies.chain(NO_PROXY.into_iter().map(|name| (name, around.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_to_go_around_a_proxy_still_does() {
        let address = ([127, 0, 0, 1], 3128).into();
        let value = |given: &dyn Fn(&str) -> Option<OsString>, name: &str| {
            let all = variables(address, "job:x", given);
            all.into_iter().find(|(n, _)| *n == name).map(|(_, v)| v.into_string().unwrap())
        };
        let nothing = |_: &str| None;
        let some = |name: &str| (name == "NO_PROXY").then(|| OsString::from("db.test"));
        assert_eq!(value(&nothing, "http_proxy").as_deref(), Some("http://job:x@127.0.0.1:3128"));
        assert_eq!(value(&nothing, "NO_PROXY").as_deref(), Some("localhost,127.0.0.1,::1"));
        assert_eq!(value(&some, "no_proxy").as_deref(), Some("localhost,127.0.0.1,::1,db.test"));
        assert_eq!(value(&nothing, "ALL_PROXY"), None);
    }

    #[test]
    fn another_proxy_is_noticed() {
        assert_eq!(taken(&|_| None), None);
        assert_eq!(taken(&|name| (name == "all_proxy").then(|| "x".into())), Some("all_proxy"));
    }
}
