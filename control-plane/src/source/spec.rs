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
/// Displays without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl(String);

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
        self.user_info().is_some()
    }

    /// Takes the credentials of this address out of a text that may quote it.
    pub(crate) fn redact(&self, text: &str) -> String {
        match self.user_info() {
            Some(user_info) => text.replace(&format!("{user_info}@"), ""),
            None => text.to_owned(),
        }
    }

    pub(crate) fn is_ssh(&self) -> bool {
        self.0.starts_with("ssh://") || !self.0.contains("://")
    }

    /// `user:password` of `http(s)://user:password@host/…`. An ssh user is part
    /// of the address and no secret.
    fn user_info(&self) -> Option<&str> {
        let (scheme, rest) = self.0.split_once("://")?;
        if !scheme.starts_with("http") {
            return None;
        }
        let authority = rest.split('/').next()?;
        authority.rsplit_once('@').map(|(user_info, _)| user_info)
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redact(&self.0))
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
}
