//! What the operator names as a source.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

/// A source of policy files, as named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// Where.
    pub location: Location,
    /// The branch followed; `None` = the repository's `HEAD`.
    pub branch: Option<String>,
    /// The sub-folder that holds the policies; `None` = the top.
    pub folder: Option<PathBuf>,
}

/// A place on this machine or behind a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A plain folder, a work tree or a bare repository; which of them is decided at each look.
    Local(PathBuf),
    /// A Git repository.
    Remote(RemoteUrl),
}

/// The address of a Git repository: `https`, `http`, `ssh`, `file`, or `user@host:path`.
///
/// Displays without user, password and query.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl(String);

/// What stands for a secret.
const MASK: &str = "***";
/// Shorter pieces of credentials are not looked for by themselves.
const SHORTEST_SECRET: usize = 4;
/// What stands for all that git said.
const WITHHELD: &str = "fatal: what git says is withheld, for it may quote the password; \
    write `/` as %2F, `@` as %40, `:` as %3A, `?` as %3F, `#` as %23 and `%` as %25 in it";

/// A source that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing was given.
    #[error("--policies is empty: name a folder or a Git repository")]
    Empty,
    /// Would be read as an option by git.
    #[error("--{flag} `{value}` starts with `-`, which git would take for an option")]
    Option {
        /// Which flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// A transport that is not followed.
    #[error(
        "--policies: scheme `{0}` is not followed; use https, http, ssh or file, or a local path"
    )]
    Scheme(String),
    /// Not a name git allows.
    #[error("--branch `{0}` is not a branch name (git check-ref-format)")]
    Branch(String),
    /// Leaves the repository.
    #[error("--path `{}` must be a relative path inside the policy source, without `..`", .0.display())]
    Folder(PathBuf),
    /// Bytes that no address has.
    #[error("--{0} holds a control character")]
    Control(&'static str),
}

impl SourceSpec {
    /// Reads the three flags.
    ///
    /// An existing path wins over the `host:path` form, as it does for git.
    ///
    /// # Errors
    /// When a value cannot be meant, or could be taken for an option by git.
    pub fn parse(
        policies: &str,
        branch: Option<&str>,
        folder: Option<&Path>,
    ) -> Result<Self, SpecError> {
        if policies.is_empty() {
            return Err(SpecError::Empty);
        }
        if policies.chars().any(char::is_control) {
            return Err(SpecError::Control("policies"));
        }
        let location = match RemoteUrl::parse(policies)? {
            Some(url) => Location::Remote(url),
            None if policies.starts_with('-') => {
                return Err(SpecError::Option { flag: "policies", value: policies.into() });
            }
            None => Location::Local(PathBuf::from(policies)),
        };
        let branch = branch.map(check_branch).transpose()?;
        let folder = folder.map(check_folder).transpose()?.flatten();
        Ok(Self { location, branch, folder })
    }

    /// One line that tells this source from others; holds no secret.
    pub fn identity(&self) -> String {
        let location = match &self.location {
            Location::Local(path) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
            }
            Location::Remote(url) => url.to_string(),
        };
        let branch = self.branch.as_deref().unwrap_or_default();
        let folder = self.folder.as_deref().unwrap_or(Path::new("")).display();
        format!("{location}#{branch}:{folder}")
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Remote(url) => url.fmt(f),
        }
    }
}

impl RemoteUrl {
    /// `None` when the text is a path.
    fn parse(text: &str) -> Result<Option<Self>, SpecError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return match scheme {
                "https" | "http" | "ssh" | "file" => Ok(Some(Self(text.to_owned()))),
                other => Err(SpecError::Scheme(other.to_owned())),
            };
        }
        // `ext::sh -c …` and its like name a program to run.
        if let Some((transport, _)) = text.split_once("::") {
            return Err(SpecError::Scheme(transport.to_owned()));
        }
        let scp = text.split_once(':').is_some_and(|(host, _)| !host.contains('/'));
        if !scp || Path::new(text).exists() {
            return Ok(None);
        }
        if text.starts_with('-') {
            return Err(SpecError::Option { flag: "policies", value: text.to_owned() });
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// The address with its credentials, for git alone.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// Whether it carries a password (or a token).
    pub fn holds_password(&self) -> bool {
        self.shown() != self.0
    }

    /// Takes the credentials of this address out of a text that may quote it.
    ///
    /// Nothing is left of the text where they are not written as an address
    /// has them: what git and curl quote of them then cannot be told in advance.
    pub(crate) fn redact(&self, text: &str) -> String {
        let Parts { user_info, query, .. } = self.parts();
        if !user_info
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:".contains(&b))
            || user_info.matches(':').count() > 1
        {
            return WITHHELD.to_owned();
        }
        let mut text = text.replace(&self.0, &self.shown());
        if !user_info.is_empty() {
            text = text.replace(&format!("{user_info}@"), "");
        }
        let password = user_info.split_once(':').map_or(user_info, |(_, password)| password);
        let values = query.split(['&', ';', '#']).map(|p| p.split_once('=').map_or(p, |p| p.1));
        let mut secrets: Vec<&str> =
            [user_info, password, query].into_iter().chain(values).collect();
        // Shorter ones are found in any text.
        secrets.retain(|secret| secret.len() >= SHORTEST_SECRET);
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in secrets {
            text = text.replace(secret, MASK).replace(&decoded(secret), MASK);
        }
        text
    }

    /// The address without credentials.
    fn shown(&self) -> String {
        let Parts { scheme, user_info, after, query } = self.parts();
        // A `?` before an `@`: either a password with the one or a query with the other.
        if user_info.contains(['?', '#']) {
            return format!("{scheme}{MASK}");
        }
        let mask = if query.is_empty() { "" } else { MASK };
        format!("{scheme}{after}{mask}")
    }

    fn parts(&self) -> Parts<'_> {
        let (scheme, rest) = match self.0.find("://") {
            Some(at) => self.0.split_at(at + "://".len()),
            None => ("", &*self.0),
        };
        let http = scheme.starts_with("http");
        let (user_info, after) = match rest.rsplit_once('@') {
            Some(parts) if scheme != "file://" && (http || !is_ssh_address(rest)) => parts,
            _ => ("", rest),
        };
        let query = after.find(['?', '#']).filter(|_| http).map_or(after.len(), |at| at + 1);
        let (after, query) = after.split_at(query);
        Parts { scheme, user_info, after, query }
    }

    pub(crate) fn is_ssh(&self) -> bool {
        self.0.starts_with("ssh://") || !self.0.contains("://")
    }
}

/// An address taken apart.
struct Parts<'a> {
    /// With `://`; empty in `user@host:path`.
    scheme: &'a str,
    /// Credentials: all up to the last `@`, since a password that was not
    /// escaped may hold any of `/@:?#`. An ssh user is part of the address and
    /// no secret.
    user_info: &'a str,
    /// Host and path, with the `?` or `#` that ends them.
    after: &'a str,
    /// `access_token=…`, and its like.
    query: &'a str,
}

/// Whether it reads as `user@host`, `user@host:port` or `user@host:path`, with
/// no password: the first `:`, if any, comes after the first `@`, and is a
/// port's where a path follows by `/`.
fn is_ssh_address(rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    let user = authority.split_once('@').map_or(authority, |(user, _)| user);
    authority.contains('@') && !user.contains(':') && !authority[user.len() + 1..].contains('@')
}

/// Undoes per-cent encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteUrl({self})")
    }
}

/// Whether a folder is the top of a work tree, or a bare repository.
pub(crate) fn is_repository(path: &Path) -> bool {
    let bare = || {
        path.join("HEAD").is_file() && path.join("objects").is_dir() && path.join("refs").is_dir()
    };
    path.join(".git").exists() || bare()
}

/// The rules of git-check-ref-format(1) that matter to us.
fn check_branch(name: &str) -> Result<String, SpecError> {
    if name.starts_with('-') {
        return Err(SpecError::Option { flag: "branch", value: name.into() });
    }
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let component = |c: &str| !c.is_empty() && !c.starts_with('.') && !c.ends_with(".lock");
    let fits = name.len() <= 255
        && !name.contains(forbidden)
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.ends_with('.')
        && name.split('/').all(component);
    if fits { Ok(name.to_owned()) } else { Err(SpecError::Branch(name.to_owned())) }
}

/// `None` for the top itself (`.`, or an empty path).
fn check_folder(folder: &Path) -> Result<Option<PathBuf>, SpecError> {
    if folder.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(SpecError::Control("path"));
    }
    let mut clean = PathBuf::new();
    for component in folder.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            _ => return Err(SpecError::Folder(folder.to_owned())),
        }
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str) -> Result<Location, SpecError> {
        SourceSpec::parse(text, None, None).map(|spec| spec.location)
    }

    #[test]
    fn urls_and_paths_are_told_apart() {
        for remote in [
            "https://example.com/policies.git",
            "http://localhost:3000/p",
            "ssh://git@example.com:22/p.git",
            "file:///srv/p.git",
            "git@example.com:team/p.git",
            "host:p",
        ] {
            assert!(matches!(location(remote), Ok(Location::Remote(_))), "{remote}");
        }
        for local in ["policies", "./-odd", "/srv/policies", "a/b:c"] {
            assert!(matches!(location(local), Ok(Location::Local(_))), "{local}");
        }
    }

    #[test]
    fn what_could_run_a_program_is_refused() {
        for text in ["--upload-pack=touch x", "-oProxyCommand=x:y", "-x"] {
            assert!(matches!(location(text), Err(SpecError::Option { .. })), "{text}");
        }
        for text in ["ext::sh -c touch% x", "ext://x", "fd::7", "git://example.com/p"] {
            assert!(matches!(location(text), Err(SpecError::Scheme(_))), "{text}");
        }
        assert_eq!(location("https://a/b\nc"), Err(SpecError::Control("policies")));
        assert_eq!(location(""), Err(SpecError::Empty));
    }

    #[test]
    fn branches_follow_gits_rules() {
        for name in ["main", "release/1.2", "a@b"] {
            assert_eq!(check_branch(name), Ok(name.to_owned()));
        }
        for name in ["", "a b", "a..b", "a.lock", "/a", "a//b", ".a", "a@{1}", "a:b", "@", "a."] {
            assert_eq!(check_branch(name), Err(SpecError::Branch(name.into())), "{name}");
        }
        assert!(matches!(check_branch("--exec"), Err(SpecError::Option { .. })));
    }

    #[test]
    fn sub_folders_stay_inside() {
        let clean = |p: &str| check_folder(Path::new(p));
        assert_eq!(clean("a/./b"), Ok(Some("a/b".into())));
        assert_eq!(clean("."), Ok(None));
        assert!(clean("../a").is_err() && clean("/a").is_err() && clean("a/../../b").is_err());
    }

    #[test]
    fn passwords_are_never_shown() {
        let Ok(Location::Remote(url)) = location("https://me:s3cret@example.com/p.git") else {
            panic!("a URL")
        };
        assert_eq!(url.to_string(), "https://example.com/p.git");
        assert!(url.holds_password());
        assert!(!format!("{url:?}").contains("s3cret"));
        assert_eq!(
            url.redact("fatal: 'https://me:s3cret@example.com/p.git' not found"),
            "fatal: 'https://example.com/p.git' not found"
        );
        let Ok(Location::Remote(ssh)) = location("ssh://git@example.com/p.git") else {
            panic!("a URL")
        };
        assert_eq!(ssh.to_string(), "ssh://git@example.com/p.git");
        assert!(!ssh.holds_password());
    }

    fn url(text: &str) -> RemoteUrl {
        match location(text) {
            Ok(Location::Remote(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn credentials_are_masked_however_they_are_written() {
        for (text, shown) in [
            ("https://user:p/a@ss@host/repo.git", "https://host/repo.git"),
            ("https://user:p:a@ss:@host:8443/repo.git", "https://host:8443/repo.git"),
            ("https://user:12/34@host/repo.git", "https://host/repo.git"),
            ("https://to/ken@host/repo.git", "https://host/repo.git"),
            ("http://user:p%2Fa@host/repo.git", "http://host/repo.git"),
            ("https://user:p?a=b@host/repo.git", "https://***"),
            ("https://user:p#a@host/repo.git", "https://***"),
            ("https://host/r.git?private_token=a@b", "https://***"),
            ("https://host/r.git?access_token=abc", "https://host/r.git?***"),
            ("https://u:p@host/r.git?a=b&private_token=abc", "https://host/r.git?***"),
            ("https://host/r.git#abc", "https://host/r.git#***"),
            ("ssh://git:p/a@ss@host/repo.git", "ssh://host/repo.git"),
            ("ssh://git:s3cret@host:22/repo.git", "ssh://host:22/repo.git"),
            // As they are typed by mistake.
            ("https:/me:s3cret@host/repo.git", "host/repo.git"),
            ("me:s3cret@host:repo.git", "host:repo.git"),
        ] {
            let url = url(text);
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(format!("{url:?}"), format!("RemoteUrl({shown})"));
            assert!(url.holds_password(), "{text}");
            assert_eq!(url.secret(), text);
            let spec = SourceSpec::parse(text, None, None).unwrap();
            assert_eq!(spec.identity(), format!("{shown}#:"));
        }
    }

    #[test]
    fn addresses_without_credentials_are_shown_as_they_are() {
        for text in [
            "https://host:8443/repo.git",
            "git@host:path",
            "git@host:team/a@b.git",
            "host:path",
            "ssh://git@host:22/team/a@b.git",
            "ssh://host/repo.git",
            "file:///srv/a:b@c/repo.git",
        ] {
            let url = url(text);
            assert_eq!(url.to_string(), text);
            assert!(!url.holds_password(), "{text}");
            assert_eq!(url.redact("fatal: no such thing"), "fatal: no such thing");
        }
    }

    #[test]
    fn what_git_quotes_of_credentials_is_masked_or_withheld() {
        let encoded = url("https://me:s3%2Fcret@host/repo.git?access_token=t0ken&x=1");
        for (said, expected) in [
            (
                "unable to access 'https://me:s3%2Fcret@host/x/'",
                "unable to access 'https://host/x/'",
            ),
            ("wrong: s3/cret", "wrong: ***"),
            ("wrong: s3%2Fcret", "wrong: ***"),
            ("GET /repo.git?access_token=t0ken&x=1", "GET /repo.git?***"),
            ("token t0ken is not valid", "token *** is not valid"),
        ] {
            assert_eq!(encoded.redact(said), expected);
        }
        for odd in [
            "https://user:p/a@ss@host/repo.git",
            "https://user:p?a@host/repo.git",
            "https://user:p:a@host/repo.git",
            "https://user:p a@host/repo.git",
        ] {
            let said = "fatal: unable to access: Could not resolve host: ss@host";
            assert_eq!(url(odd).redact(said), WITHHELD, "{odd}");
        }
    }
}
