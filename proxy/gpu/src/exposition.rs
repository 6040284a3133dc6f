//! Cards and model servers through the metrics of an exporter, as Prometheus
//! text. The text is the caller's to fetch.
//!
//! One reader for each exporter, and [`cards`] and [`server`] for those who do
//! not know which it is: names do not overlap.

use crate::reading::{Fault, Problem, Reading, ServerLoad};

mod amd;
mod dcgm;
mod series;
mod servers;
mod text;

pub use amd::read as amd;
pub use dcgm::read as dcgm;
pub use servers::{triton, vllm};

/// The most that is taken of a text; a node's exporter says some hundred KiB.
pub const MAX_BYTES: usize = 8 << 20;

/// Reads the cards of AMD's or NVIDIA's exporter.
///
/// # Errors
/// When the text is neither's, or too large to be one.
pub fn cards(text: &str) -> Result<Vec<Reading>, Fault> {
    let mut cards = dcgm(text)?;
    cards.extend(amd(text)?);
    if cards.is_empty() {
        Err(Fault::new("metrics", Problem::Garbled("those of a GPU exporter")))
    } else {
        Ok(cards)
    }
}

/// Reads what vLLM or Triton says.
///
/// # Errors
/// When the text is neither's, or too large to be one.
pub fn server(text: &str) -> Result<ServerLoad, Fault> {
    let load = match vllm(text)? {
        load if load == ServerLoad::default() => triton(text)?,
        load => load,
    };
    if load == ServerLoad::default() {
        return Err(Fault::new("metrics", Problem::Garbled("those of a model server")));
    }
    Ok(load)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_something_else_is_an_error_and_not_a_node_without_cards() {
        for text in [
            "",
            "<html>502</html>",
            "up 1\n",
            "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\"\n",
            "gpu_nodes_total 1\n",
        ] {
            assert!(cards(text).is_err(), "{text}");
            assert!(server(text).is_err(), "{text}");
        }
        let long = "a 1\n".repeat(MAX_BYTES / 4 + 1);
        let too_much = Problem::TooMuch("8 MiB");
        assert_eq!(cards(&long).map_err(|fault| fault.problem), Err(too_much.clone()));
        assert_eq!(server(&long).map_err(|fault| fault.problem), Err(too_much));
    }
}
