//! `towpath schema`: JSON Schemas, so that editors know the policy files, and definitions, so that
//! clusters do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use towpath_policies::schema::{ALL_KINDS, crds, schemas};

use crate::output::print;

/// Options.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "In an editor with the YAML language server, the first line of a policy file:
  # yaml-language-server: $schema=schemas/towpath.schema.json"
)]
pub(crate) struct Args {
    /// Folder to write the schemas to; without it the one for all kinds goes to standard output
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Write Kubernetes' CustomResourceDefinitions of Towpath's own kinds instead; without DIR all of
    /// them, as one YAML stream
    #[arg(long)]
    crds: bool,
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.crds {
        let crds = crds();
        let Some(folder) = args.folder else {
            let documents: Vec<_> = crds.into_iter().map(|(_, text)| text).collect();
            print(&documents.join("---\n"))?;
            return Ok(ExitCode::SUCCESS);
        };
        let count = write_all(&folder, &crds)?;
        print(&format!("{count} definitions in {}\n", folder.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let pretty = |(name, schema)| {
        Ok::<_, serde_json::Error>((name, serde_json::to_string_pretty(&schema)? + "\n"))
    };
    let schemas = schemas().into_iter().map(pretty).collect::<Result<Vec<_>, _>>()?;
    let Some(folder) = args.folder else {
        if let Some((_, schema)) = schemas.into_iter().find(|(name, _)| name == ALL_KINDS) {
            print(&schema)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let count = write_all(&folder, &schemas)?;
    print(&format!("{count} schemas in {}; {ALL_KINDS} knows every kind\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes files to a folder, which is made if need be; tells how many.
fn write_all(folder: &Path, files: &[(String, String)]) -> anyhow::Result<usize> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(files.len())
}
