//! Git repositories, through the `git` program: what works for its user on the
//! command line (transports, credential helpers, ssh agents) works here.
//!
//! Only commits are read, never a work tree, and no hook, filter or pager of
//! the repository is run.

mod command;
mod tree;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use command::{Call, Failure};

use super::{Look, RemoteUrl, SourceError};

/// For what reads the disk.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(30);
/// For what may wait for a network.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(120);
/// Names, ids and messages; lists of branches.
const SMALL_OUTPUT: u64 = 1 << 20;
/// Branches named when the one asked for is missing.
const BRANCHES_SHOWN: usize = 8;
/// The reference of the mirror that holds what was fetched last.
const FOLLOWED: &str = "refs/towpath/followed";

/// A work tree or bare repository on this machine.
pub(super) struct Local<'a> {
    pub(super) path: &'a Path,
    pub(super) branch: Option<&'a str>,
}

/// A repository behind a URL, with its mirror on this machine.
pub(super) struct Remote<'a> {
    pub(super) url: &'a RemoteUrl,
    pub(super) mirror: &'a Path,
    pub(super) branch: Option<&'a str>,
}

impl Local<'_> {
    pub(super) async fn look(
        &self,
        sub: Option<&Path>,
        last: Option<&str>,
    ) -> Result<Look, SourceError> {
        let commit = self.head().await?;
        if last == Some(commit.as_str()) {
            return Ok(Look::Unchanged);
        }
        let branch = match self.branch {
            Some(branch) => Some(branch.to_owned()),
            None => self.current_branch().await,
        };
        let at = self.at();
        let files = tree::read(&|| self.call(), &at, &commit, sub).await?;
        Ok(Look::Changed(files.into_revision(commit, branch)))
    }

    /// The Git directory whose references tell of new commits; `None` for a linked work tree.
    pub(super) fn refs_folder(&self) -> Option<PathBuf> {
        let dot_git = self.path.join(".git");
        match dot_git.symlink_metadata() {
            Ok(kind) => kind.is_dir().then_some(dot_git),
            Err(_) => Some(self.path.to_owned()),
        }
    }

    async fn head(&self) -> Result<String, SourceError> {
        let name = match self.branch {
            Some(branch) => format!("{}^{{commit}}", full_name(branch)),
            None => "HEAD^{commit}".to_owned(),
        };
        let call = self.call().args(["rev-parse", "--verify", "--quiet", "--end-of-options"]);
        match call.arg(&name).text().await {
            Ok(id) => Ok(id.trim().to_owned()),
            // `--quiet` says nothing exactly when the name does not resolve.
            Err(Failure::Exit { stderr, .. }) if stderr.is_empty() => Err(self.missing().await),
            Err(failure) => Err(explain(failure, &self.at(), |text| text.to_owned())),
        }
    }

    async fn missing(&self) -> SourceError {
        let Some(branch) = self.branch else { return SourceError::Empty { at: self.at() } };
        let call = self.call().args(["for-each-ref", "--format=%(refname)", "refs/heads"]);
        let refs = call.text().await.unwrap_or_default();
        let known = nearest(branch, refs.lines());
        SourceError::BranchMissing { at: self.at(), branch: branch.to_owned(), known }
    }

    async fn current_branch(&self) -> Option<String> {
        let name = self.call().args(["symbolic-ref", "--quiet", "HEAD"]).text().await.ok()?;
        Some(short_name(name.trim()).to_owned())
    }

    fn call(&self) -> Call {
        Call::new(LOCAL_TIMEOUT, SMALL_OUTPUT).arg("-C").arg(self.path)
    }

    fn at(&self) -> String {
        self.path.display().to_string()
    }
}

impl Remote<'_> {
    /// A mirror that an ended process left locked or half-written is made anew, once.
    pub(super) async fn look(
        &self,
        sub: Option<&Path>,
        last: Option<&str>,
    ) -> Result<Look, SourceError> {
        let fresh = !self.mirror.join("HEAD").is_file();
        if fresh {
            self.make_mirror().await?;
        }
        match self.look_by_mirror(sub, last).await {
            Err(SourceError::Git { detail, .. }) if !fresh => {
                tracing::warn!(mirror = %self.mirror.display(), %detail, "the mirror is made anew");
                self.make_mirror().await?;
                self.look_by_mirror(sub, last).await
            }
            outcome => outcome,
        }
    }

    async fn look_by_mirror(
        &self,
        sub: Option<&Path>,
        last: Option<&str>,
    ) -> Result<Look, SourceError> {
        let head = self.head().await?;
        if last == Some(head.commit.as_str()) {
            return Ok(Look::Unchanged);
        }
        self.fetch(&head.name).await?;
        // What the fetch brought, which may be newer than what the listing said.
        let name = format!("{FOLLOWED}^{{commit}}");
        let call = self.call().args(["rev-parse", "--verify", "--end-of-options"]).arg(&name);
        let commit = call.text().await.map_err(|e| self.explain(e))?.trim().to_owned();
        if last == Some(commit.as_str()) {
            return Ok(Look::Unchanged);
        }
        let files = tree::read(&|| self.call(), &self.at(), &commit, sub).await?;
        Ok(Look::Changed(files.into_revision(commit, head.branch)))
    }

    async fn head(&self) -> Result<Head, SourceError> {
        let wanted = self.branch.map_or_else(|| "HEAD".to_owned(), full_name);
        let call = self.network("ls-remote").await.args(["--symref", "--end-of-options"]);
        let call = call.arg(self.url.secret()).arg(&wanted);
        let listing = call.text().await.map_err(|e| self.explain(e))?;
        let Some(commit) = Head::commit(&listing, &wanted) else {
            return Err(self.missing().await);
        };
        let branch = match self.branch {
            Some(branch) => Some(branch.to_owned()),
            None => Head::branch(&listing),
        };
        Ok(Head { commit, name: wanted, branch })
    }

    async fn missing(&self) -> SourceError {
        let Some(branch) = self.branch else { return SourceError::Empty { at: self.at() } };
        let call = self.network("ls-remote").await.args(["--heads", "--end-of-options"]);
        let listing = call.arg(self.url.secret()).text().await.unwrap_or_default();
        let names = listing.lines().filter_map(|line| Some(line.split_once('\t')?.1));
        let known = nearest(branch, names);
        SourceError::BranchMissing { at: self.at(), branch: branch.to_owned(), known }
    }

    /// Brings the tip into the mirror.
    async fn fetch(&self, name: &str) -> Result<(), SourceError> {
        let refspec = format!("+{name}:{FOLLOWED}");
        let fetch = async |depth: Option<&str>| {
            let call = self.network("fetch").await;
            let call = call.args(["--quiet", "--no-tags", "--no-write-fetch-head"]);
            let call = call.args(["--no-recurse-submodules", "--force"]).args(depth);
            call.arg("--end-of-options").arg(self.url.secret()).arg(&refspec).text().await
        };
        let outcome = match fetch(Some("--depth=1")).await {
            // A repository behind a plain file server has no protocol to ask for less.
            Err(Failure::Exit { stderr, .. }) if stderr.contains("shallow capabilities") => {
                fetch(None).await
            }
            outcome => outcome,
        };
        outcome.map(drop).map_err(|e| self.explain(e))
    }

    async fn make_mirror(&self) -> Result<(), SourceError> {
        match tokio::fs::remove_dir_all(self.mirror).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(SourceError::io("the mirror cannot be removed", self.mirror, e));
            }
            _ => {}
        }
        // An empty template: a person's own may hold hooks.
        let call = Call::new(LOCAL_TIMEOUT, SMALL_OUTPUT);
        let call = call.args(["init", "--quiet", "--bare", "--template=", "--end-of-options"]);
        call.arg(self.mirror).text().await.map(drop).map_err(|e| self.explain(e))
    }

    /// By the mirror's configuration, never that of a repository we happen to stand in.
    async fn network(&self, command: &str) -> Call {
        let call = Call::new(REMOTE_TIMEOUT, SMALL_OUTPUT).arg("--git-dir").arg(self.mirror);
        let call = if self.url.is_ssh() && !self.chooses_ssh_command().await {
            call.without_ssh_prompts()
        } else {
            call
        };
        call.arg(command)
    }

    /// Whether the user's git configuration names an ssh command, which ours would displace.
    async fn chooses_ssh_command(&self) -> bool {
        self.call().args(["config", "--get", "core.sshCommand"]).text().await.is_ok()
    }

    fn call(&self) -> Call {
        Call::new(LOCAL_TIMEOUT, SMALL_OUTPUT).arg("--git-dir").arg(self.mirror)
    }

    fn explain(&self, failure: Failure) -> SourceError {
        explain(failure, &self.at(), |text| self.url.redact(text))
    }

    fn at(&self) -> String {
        self.url.to_string()
    }
}

/// What `git ls-remote --symref` said of the reference that is followed.
struct Head {
    commit: String,
    /// `HEAD` or `refs/heads/…`.
    name: String,
    branch: Option<String>,
}

impl Head {
    fn commit(listing: &str, wanted: &str) -> Option<String> {
        let mut lines = listing.lines().filter_map(|line| line.split_once('\t'));
        lines.find(|(id, name)| *name == wanted && is_object_id(id)).map(|(id, _)| id.to_owned())
    }

    fn branch(listing: &str) -> Option<String> {
        let mut lines = listing.lines().filter_map(|line| line.split_once('\t'));
        let (target, _) = lines.find(|(to, name)| *name == "HEAD" && to.starts_with("ref: "))?;
        Some(short_name(target.trim_start_matches("ref: ")).to_owned())
    }
}

/// Turns what git said into what a person can act on.
fn explain(failure: Failure, at: &str, redact: impl Fn(&str) -> String) -> SourceError {
    let at = at.to_owned();
    match failure {
        Failure::NoProgram => SourceError::GitMissing,
        Failure::Io { command, source } => {
            SourceError::Git { at, command, detail: source.to_string() }
        }
        Failure::TimedOut { command, after } => {
            SourceError::TimedOut { at, command, seconds: after.as_secs() }
        }
        Failure::TooMuch { command, limit } => {
            SourceError::TooLarge { at, command, limit_kib: limit >> 10 }
        }
        Failure::Exit { command, stderr } => {
            let detail = gist(&redact(&stderr));
            let says = |signs: &[&str]| signs.iter().any(|sign| stderr.contains(sign));
            if says(DENIED) {
                SourceError::Denied { at, detail }
            } else if says(&["dubious ownership"]) {
                SourceError::Owner { at }
            } else if says(UNREACHABLE) {
                SourceError::Unreachable { at, detail }
            } else {
                SourceError::Git { at, command, detail }
            }
        }
    }
}

/// What git, curl and ssh say (in the C locale) when a server turns us away.
const DENIED: &[&str] = &[
    "Authentication failed",
    "could not read Username",
    "could not read Password",
    "terminal prompts disabled",
    "Permission denied",
    "Host key verification failed",
    "The requested URL returned error: 401",
    "The requested URL returned error: 403",
    "Access denied",
];

/// What they say when there is no server, or nothing there.
const UNREACHABLE: &[&str] = &[
    "Could not resolve host",
    "Could not resolve hostname",
    "Connection refused",
    "Connection timed out",
    "Connection reset",
    "Failed to connect",
    "Network is unreachable",
    "No route to host",
    "unable to access",
    "does not appear to be a git repository",
    "does not exist",
    "not found",
    "Could not read from remote repository",
    "early EOF",
    "hung up",
];

/// The lines of git's message that say what is wrong, in one line.
fn gist(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = |line: &&str| {
        ["fatal:", "error:", "remote:", "ssh:", "ERROR"].iter().any(|sign| line.starts_with(sign))
            || line.contains("denied")
            || line.contains("verification failed")
    };
    let strip = |line: &str| line.trim_start_matches("fatal: ").trim_end_matches('.').to_owned();
    let mut parts: Vec<_> = lines().filter(told).take(3).map(strip).collect();
    if parts.is_empty() {
        parts = lines().take(1).map(strip).collect();
    }
    if parts.is_empty() {
        return "it said nothing".to_owned();
    }
    parts.join("; ").chars().filter(|c| !c.is_control()).take(500).collect()
}

/// `refs/heads/` before a plain branch name.
fn full_name(branch: &str) -> String {
    if branch.starts_with("refs/") { branch.to_owned() } else { format!("refs/heads/{branch}") }
}

fn short_name(reference: &str) -> &str {
    reference.strip_prefix("refs/heads/").unwrap_or(reference)
}

/// A few names, those that share the longest start with `wanted` first.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let common = |name: &str| {
        wanted.bytes().zip(name.bytes()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
    };
    let mut names: Vec<&str> = names.map(short_name).collect();
    names.sort_by_key(|name| (std::cmp::Reverse(common(name)), *name));
    names.into_iter().take(BRANCHES_SHOWN).map(str::to_owned).collect()
}

/// SHA-1 or SHA-256 in hexadecimal.
fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(stderr: &str) -> Failure {
        Failure::Exit { command: "fetch".into(), stderr: stderr.into() }
    }

    #[test]
    fn what_git_says_becomes_what_to_do() {
        let kind = |stderr: &str| match explain(exit(stderr), "https://h/p", str::to_owned) {
            SourceError::Denied { .. } => "denied",
            SourceError::Owner { .. } => "owner",
            SourceError::Unreachable { .. } => "unreachable",
            SourceError::Git { .. } => "git",
            _ => "other",
        };
        for (stderr, expected) in [
            ("fatal: could not read Username for 'https://h': terminal prompts disabled", "denied"),
            ("git@h: Permission denied (publickey).\nfatal: Could not read from remote", "denied"),
            (
                "Host key verification failed.\nfatal: Could not read from remote repository.",
                "denied",
            ),
            ("fatal: unable to access 'https://h/p/': Could not resolve host: h", "unreachable"),
            ("fatal: '/srv/p' does not appear to be a git repository", "unreachable"),
            ("fatal: detected dubious ownership in repository at '/srv/p'", "owner"),
            ("fatal: Unable to create 'shallow.lock': File exists.", "git"),
        ] {
            assert_eq!(kind(stderr), expected, "{stderr}");
        }
    }

    #[test]
    fn the_gist_is_one_line_without_control_characters() {
        assert_eq!(gist("Cloning…\nfatal: it is\u{1b}[31m gone.\n"), "it is[31m gone");
        assert_eq!(gist(""), "it said nothing");
        assert_eq!(gist("odd"), "odd");
    }

    #[test]
    fn listings_name_the_commit_and_the_branch() {
        let id = "a".repeat(40);
        let listing = format!(
            "ref: refs/heads/trunk\tHEAD\n{id}\tHEAD\n{}\trefs/remotes/origin/HEAD\n",
            "b".repeat(40)
        );
        assert_eq!(Head::commit(&listing, "HEAD"), Some(id));
        assert_eq!(Head::branch(&listing).as_deref(), Some("trunk"));
        assert_eq!(Head::commit(&listing, "refs/heads/x"), None);
    }

    #[test]
    fn near_names_come_first() {
        let refs = ["refs/heads/dev", "refs/heads/main", "refs/heads/mainline"];
        assert_eq!(nearest("mian", refs.into_iter()), ["main", "mainline", "dev"]);
    }
}
