//! A plan for people: a line for the run, one for each request.

use std::fmt;

use super::{Body, Plan};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: client {:?}", self.seed, self.client)?;
        if let Some(wire) = self.sidecar {
            write!(f, ", sidecar {wire:?}")?;
        }
        write!(f, ", {} endpoints {:?}, shared {}", self.endpoints, self.endpoint, self.shared)?;
        writeln!(f, "{}", if self.plane { ", by xDS" } else { "" })?;
        writeln!(f, "  {:?}", self.policy)?;
        if let Some(event) = self.event {
            writeln!(f, "  after {} bytes: {:?}", event.after_bytes, event.kind)?;
        }
        for (lane, requests) in self.lanes.iter().enumerate() {
            for r in requests {
                let body = |b: Body| format!("{}{}", b.size, if b.declared { "" } else { "?" });
                writeln!(
                    f,
                    "  lane {lane}: #{} {} {:?} up {} down {} by {}{}{}{}{} tries {:?} client {:?}",
                    r.index,
                    r.method,
                    r.direction,
                    body(r.up),
                    body(r.down),
                    r.piece,
                    if r.key.is_some() { " keyed" } else { "" },
                    if r.tagged { " tagged" } else { "" },
                    if r.proved { " proved" } else { "" },
                    if r.resumable { " resumable" } else { "" },
                    r.tries,
                    r.quirk,
                )?;
            }
        }
        Ok(())
    }
}
