//! `towpath inject`: puts a sidecar beside workloads that were not written for one, and takes it
//! out again.
//!
//! Exit status 0: done. 1: something is wrong, and nothing was written.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use towpath_inject::{Kind, Options, Outcome, Problem, Source, inject, systemd, unified, uninject};

use crate::output::print;

/// Options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath inject app.yaml | kubectl apply -f -
  helm template release chart | towpath inject - | kubectl apply -f -
  towpath inject --dry-run deploy/*.yaml                     what would change
  towpath inject --in-place compose.yaml --policies ./mesh   Compose is told by its services
  towpath inject --in-place --uninject deploy/*.yaml         back to the byte
  towpath inject --systemd etl.service --policies /etc/towpath

Exit status: 0 done, 1 something is wrong and nothing was written.")]
pub(crate) struct Args {
    /// Files to inject into; - is standard input
    #[arg(value_name = "FILE", required_unless_present = "systemd")]
    files: Vec<PathBuf>,

    /// Write the files anew in place of writing to standard output
    #[arg(long, conflicts_with = "dry_run")]
    in_place: bool,

    /// Show what would change, as a unified diff
    #[arg(long)]
    dry_run: bool,

    /// Take out what was put in
    #[arg(long)]
    uninject: bool,

    /// What the files are [default: what they look like]
    #[arg(long, value_enum)]
    kind: Option<FileKind>,

    /// Control plane the sidecars obey [Kubernetes default: towpath-control-plane.towpath.svc:18000]
    #[arg(long, value_name = "ADDR")]
    control_plane: Option<String>,

    /// Folder of policies the sidecars obey in place of a control plane (Compose and systemd)
    #[arg(long, value_name = "DIR", conflicts_with = "control_plane")]
    policies: Option<String>,

    /// Image of the proxy [default: ghcr.io/towpath/proxy:VERSION]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// An ordinary container in place of a native sidecar, for Kubernetes before 1.29
    #[arg(long)]
    plain: bool,

    /// Also add an init step that redirects the pod's traffic to the sidecar; it needs NET_ADMIN
    #[arg(long)]
    intercept: bool,

    /// Give this systemd service a sidecar: a drop-in and a unit
    #[arg(long, value_name = "UNIT",
        conflicts_with_all = ["files", "kind", "plain", "intercept", "image", "in_place"])]
    systemd: Option<String>,

    /// Where units are written
    #[arg(long, value_name = "DIR", default_value = systemd::FOLDER, requires = "systemd")]
    units: PathBuf,

    /// Where the proxy is on this machine
    #[arg(long, value_name = "PATH", default_value = systemd::PROXY, requires = "systemd")]
    proxy: String,

    /// Port of the sidecar's admin endpoint on loopback
    #[arg(long, value_name = "PORT", default_value_t = 9901, requires = "systemd",
        value_parser = clap::value_parser!(u16).range(1..))]
    admin_port: u16,
}

/// What files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum FileKind {
    /// Kubernetes manifests, YAML or JSON
    Kubernetes,
    /// A Compose file
    Compose,
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = args.options();
    if let Some(unit) = &args.systemd {
        return args.unit(unit, &options);
    }
    let mut done = Vec::new();
    let mut wrong = false;
    for file in &args.files {
        let (name, text) = read(file)?;
        let outcome = if args.uninject {
            uninject(&name, &text, options.kind)
        } else {
            inject(&name, &text, &options)
        };
        match outcome {
            Ok(outcome) => done.push(Done { path: file, name, before: text, outcome }),
            Err(problems) => {
                wrong = true;
                tell("error", &problems);
            }
        }
    }
    if wrong {
        eprintln!("towpath inject: nothing was written");
        return Ok(ExitCode::FAILURE);
    }
    for one in &done {
        tell("note", &one.outcome.notes);
    }
    args.write(&done)?;
    Ok(ExitCode::SUCCESS)
}

/// A file that is through.
struct Done<'a> {
    path: &'a Path,
    name: String,
    before: String,
    outcome: Outcome,
}

impl Args {
    fn options(&self) -> Options {
        let mut options = Options::new(env!("CARGO_PKG_VERSION"));
        options.kind = self.kind.map(|kind| match kind {
            FileKind::Kubernetes => Kind::Kubernetes,
            FileKind::Compose => Kind::Compose,
        });
        let folder = self.policies.clone().map(Source::Policies);
        options.source = folder.or(self.control_plane.clone().map(Source::ControlPlane));
        if let Some(image) = &self.image {
            options.image.clone_from(image);
        }
        options.plain = self.plain;
        options.intercept = self.intercept;
        options
    }

    fn write(&self, done: &[Done<'_>]) -> anyhow::Result<()> {
        if self.in_place {
            return in_place(done);
        }
        let mut text = String::new();
        for one in done {
            if self.dry_run {
                text += &unified(&one.name, &one.before, &one.outcome.text);
                continue;
            }
            // Of several files there becomes one stream of documents.
            if !text.is_empty() {
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                if !one.outcome.text.trim_start_matches('\u{feff}').starts_with("---") {
                    text += "---\n";
                }
            }
            text += &one.outcome.text;
        }
        print(&text)?;
        Ok(())
    }

    /// Writes, shows or removes the files of a unit.
    fn unit(&self, unit: &str, options: &Options) -> anyhow::Result<ExitCode> {
        let wanted = if self.uninject {
            systemd::paths(unit).map(|(paths, _)| paths.map(|path| (path, String::new())).to_vec())
        } else {
            systemd::inject(unit, &self.proxy, self.admin_port, options)
                .map(|files| files.into_iter().map(|file| (file.path, file.text)).collect())
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(problem) => {
                tell("error", &[problem]);
                return Ok(ExitCode::FAILURE);
            }
        };
        let wanted = wanted.into_iter().map(|(path, text)| (self.units.join(path), text));
        let wanted: Vec<(PathBuf, String)> = wanted.collect();
        if let Err(problems) = ours(&wanted, &options.version)? {
            tell("error", &problems);
            eprintln!("towpath inject: nothing was written");
            return Ok(ExitCode::FAILURE);
        }
        if !self.uninject {
            tell("note", missing(unit, &self.units).as_slice());
        }
        if self.dry_run {
            for (path, text) in &wanted {
                let before = fs::read_to_string(path).unwrap_or_default();
                print(&unified(&path.display().to_string(), &before, text))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        if self.uninject {
            remove_units(&wanted)?
        } else {
            write_units(&wanted)?
        }
        if let Ok(then) = systemd::then(unit, self.uninject) {
            eprintln!("{then}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// That no file of the service itself is found, where its place is known.
fn missing(unit: &str, units: &Path) -> Option<Problem> {
    let places = systemd::places(unit, units).ok().filter(|places| !places.is_empty())?;
    // A link counts, wherever it leads.
    let found = places.iter().any(|place| place.symlink_metadata().is_ok());
    (!found).then(|| systemd::missing(unit))
}

/// What stands in the way at the places of units.
fn ours(files: &[(PathBuf, String)], version: &str) -> anyhow::Result<Result<(), Vec<Problem>>> {
    let mut problems = Vec::new();
    for (path, _) in files {
        let shown = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                problems.extend(systemd::ours(&shown, &text, version).err());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(shown),
        }
    }
    Ok(if problems.is_empty() { Ok(()) } else { Err(problems) })
}

fn write_units(files: &[(PathBuf, String)]) -> anyhow::Result<()> {
    let mut staged = Vec::new();
    for (path, text) in files {
        let folder = path.parent().context("no folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        staged.push(Staged::new(path, text)?);
    }
    for one in staged {
        let shown = one.path.display().to_string();
        one.persist()?;
        eprintln!("wrote {shown}");
    }
    Ok(())
}

fn remove_units(files: &[(PathBuf, String)]) -> anyhow::Result<()> {
    for (path, _) in files {
        match fs::remove_file(path) {
            Ok(()) => eprintln!("removed {}", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome.with_context(|| path.display().to_string())?,
        }
        // The drop-in's folder goes with it, unless something else is in there.
        let folder = path.parent().filter(|folder| folder.extension().is_some_and(|e| e == "d"));
        if let Some(folder) = folder {
            let _ = fs::remove_dir(folder);
        }
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<(String, String)> {
    let (name, bytes) = if file == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).context("standard input")?;
        ("<stdin>".to_owned(), bytes)
    } else {
        let name = file.display().to_string();
        let bytes = fs::read(file).with_context(|| name.clone())?;
        (name, bytes)
    };
    let text = String::from_utf8(bytes).ok().with_context(|| format!("{name}: not UTF-8"))?;
    Ok((name, text))
}

fn tell(word: &str, problems: &[Problem]) {
    for problem in problems {
        eprintln!("{word}: {problem}");
    }
}

fn in_place(done: &[Done<'_>]) -> anyhow::Result<()> {
    if done.iter().any(|one| one.path == Path::new("-")) {
        bail!("standard input cannot be written in place; leave --in-place out");
    }
    let changed: Vec<_> = done.iter().filter(|one| one.before != one.outcome.text).collect();
    // All are on disk beside their places before the first one takes its place.
    let staged: Vec<_> = changed
        .iter()
        .map(|one| Ok((Staged::new(one.path, &one.outcome.text)?, one.before.as_str())))
        .collect::<anyhow::Result<_>>()?;
    put(staged)?;
    for one in changed {
        let mut what = one.outcome.changed.join(", ");
        if !one.outcome.taken_out.is_empty() {
            let gap = if what.is_empty() { "" } else { "; " };
            what += &format!("{gap}taken out of {}", one.outcome.taken_out.join(", "));
        }
        eprintln!("wrote {}: {what}", one.name);
    }
    Ok(())
}

/// Has files take their places; where one cannot, those before it become again what they were.
fn put(files: Vec<(Staged, &str)>) -> anyhow::Result<()> {
    let mut done: Vec<(PathBuf, &str)> = Vec::new();
    for (staged, before) in files {
        let path = staged.path.clone();
        if let Err(error) = staged.persist() {
            for (path, before) in done {
                if let Err(error) = Staged::new(&path, before).and_then(Staged::persist) {
                    eprintln!("error: {} stays changed: {error:#}", path.display());
                }
            }
            return Err(error);
        }
        done.push((path, before));
    }
    Ok(())
}

/// A file that is to take the place of another, whole or not at all, with that one's owner,
/// where this is allowed, and permissions.
struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    fn new(path: &Path, text: &str) -> anyhow::Result<Self> {
        // What a link points to is written, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let about = || path.display().to_string();
        let folder = folder.unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(about)?;
        file.write_all(text.as_bytes()).with_context(about)?;
        let permissions = match fs::metadata(&path) {
            Ok(metadata) => {
                // Only root may give a file away; otherwise it becomes the writer's, as before.
                let _ = fchown(file.as_file(), Some(metadata.uid()), Some(metadata.gid()));
                metadata.permissions()
            }
            Err(_) => PermissionsExt::from_mode(0o644),
        };
        file.as_file().set_permissions(permissions).with_context(about)?;
        file.as_file().sync_all().with_context(about)?;
        Ok(Self { file, path })
    }

    fn persist(self) -> anyhow::Result<()> {
        let about = self.path.display().to_string();
        self.file.persist(&self.path).context(about)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
