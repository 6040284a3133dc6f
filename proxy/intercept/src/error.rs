//! What can go wrong, as it is told to a person.

use std::io;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options that contradict each other, or that the kernel cannot do.
    #[error("{what}: {help}")]
    Options {
        /// What cannot be.
        what: String,
        /// What can.
        help: &'static str,
    },
    /// No program that could write rules.
    #[error(
        "neither nft nor iptables-restore is here: install nftables (Debian, Alpine: package nftables)"
    )]
    NoTool,
    /// A program that is needed is not there.
    #[error("{program} is not here, which {what} needs: install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// What needs it.
        what: &'static str,
        /// Where it comes from.
        package: &'static str,
    },
    /// A program could not be run.
    #[error("{program} could not be run")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No permission.
    #[error(
        "{program} may not look at or change the rules of this network namespace: that needs the \
         capability NET_ADMIN (run as root, or add the capability to the container)"
    )]
    NotPermitted {
        /// The program.
        program: &'static str,
    },
    /// The kernel lacks something.
    #[error(
        "this kernel cannot do what {program} asked of it ({said}): it needs {needs}, built in or \
         loaded as modules by the machine"
    )]
    Kernel {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
        /// What the kernel must have.
        needs: &'static str,
    },
    /// A program failed for another reason.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// Rules are installed whose record cannot be read.
    #[error(
        "what is installed here cannot be read ({what}): another version of towpath wrote it, or a \
         person changed it; `towpath intercept remove` takes it out all the same"
    )]
    Record {
        /// What is wrong with it.
        what: String,
    },
}
