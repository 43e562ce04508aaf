//! `tidegate stats`.

use serde_json::Value;

use super::client::Client;
use super::table::{Table, cell, duration};
use super::{Outcome, out};

pub fn run(client: &Client) -> Outcome {
    let answer: Value = client.get("/stats", &[])?;
    client.show(&answer, |a| {
        let up = a["uptime_seconds"].as_u64().unwrap_or_default();
        out(&format!("running for {}\n\n", duration(up)));
        let mut table = Table::new(&["SINCE THE START", ""]);
        for (name, value) in a["engine"].as_object().into_iter().flatten() {
            table.row([name.replace('_', " "), cell(value)]);
        }
        table.print("");
        let mut table = Table::new(&["IN THE STORE", ""]);
        for (name, value) in a["store"].as_object().into_iter().flatten() {
            table.row([name.replace('_', " "), cell(value)]);
        }
        out("\n");
        table.print("");
    });
    Ok(())
}
