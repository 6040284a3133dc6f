//! The bare hyper forwarder: the bench's own program under another name.

use anyhow::Context as _;

use super::{CommandLine, Ports};
use crate::case::Setup;

pub(super) fn prepare(setup: Setup, ports: Ports) -> anyhow::Result<CommandLine> {
    let own = std::env::current_exe().context("cannot find the bench's own program")?;
    let protocol = match setup {
        Setup::H1Small | Setup::H1Bulk => "h1",
        Setup::H2Small | Setup::Grpc | Setup::H2Bulk => "h2",
        Setup::Tcp => "tcp",
    };
    let mut command: CommandLine = vec![own.into()];
    command.extend(["forward", "--protocol", protocol, "--listen"].map(Into::into));
    command.push(ports.listen.to_string().into());
    command.extend(["--origin".into(), ports.origin.to_string().into()]);
    Ok(command)
}
