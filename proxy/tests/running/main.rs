//! Whole proxies in this process, on port 0: what they do with connections,
//! configurations and signals, apart from HTTP itself.

mod admin;
mod drain;
mod health;
mod reload;
mod support;
mod tcp;
mod tls;
