//! `towpath schema`: JSON Schemas, so that editors know the policy files.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use towpath_policies::schema::{ALL_KINDS, schemas};

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
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(folder) = args.folder else {
        if let Some((_, schema)) = schemas().into_iter().find(|(name, _)| name == ALL_KINDS) {
            println!("{}", serde_json::to_string_pretty(&schema)?);
        }
        return Ok(ExitCode::SUCCESS);
    };
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let schemas = schemas();
    for (name, schema) in &schemas {
        let path = folder.join(name);
        fs::write(&path, serde_json::to_string_pretty(schema)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{} schemas in {}; {ALL_KINDS} knows every kind", schemas.len(), folder.display());
    Ok(ExitCode::SUCCESS)
}
