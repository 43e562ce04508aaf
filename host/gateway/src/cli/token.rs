//! `tidegate token`: what opens the admin API to a tenant, for its own slot.

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, segment};
use super::table::{self, Table, cell, time_of};
use super::{Outcome, out};

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token for a tenant; it is shown this once.
    #[command(
        after_help = "Examples:\n  tidegate token add --tenant acme --note \"build server\"\n  tidegate token add --tenant acme --json"
    )]
    Add {
        #[arg(long)]
        tenant: String,
        /// What it is for.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// List the tokens, without what opens anything.
    #[command(after_help = "Example:\n  tidegate token list --tenant acme")]
    List {
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Make a token worthless, at once.
    #[command(after_help = "Example:\n  tidegate token revoke acme-1f2e3d4c")]
    Revoke { id: String },
}

fn tokens(list: &Value) -> Table {
    let mut table = Table::new(&["TOKEN", "TENANT", "CREATED", "NOTE"]);
    for t in list.as_array().into_iter().flatten() {
        table.row([
            cell(&t["id"]),
            cell(&t["tenant"]),
            time_of(&t["created_at"]),
            cell(&t["note"]),
        ]);
    }
    table
}

impl TokenCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            TokenCommand::Add { tenant, note } => {
                let answer: Value =
                    client.post("/tokens", &json!({"tenant": tenant, "note": note}))?;
                client.show(&answer, |a| {
                    tokens(&json!([a])).print("");
                    out(&format!(
                        "\n{}\n\nThis is the token; it is not shown again. Its holder puts it into a file of mode 0600\nand names that with --token-file or TIDEGATE_TOKEN_FILE.\n",
                        table::clean(&cell(&a["token"]))
                    ));
                });
            }
            TokenCommand::List { tenant } => {
                let query: Vec<_> = tenant.map(|t| ("tenant", t)).into_iter().collect();
                let list: Value = client.get("/tokens", &query)?;
                client.show(&list, |list| {
                    tokens(list).print("no tokens; make one with: tidegate token add");
                });
            }
            TokenCommand::Revoke { id } => {
                let answer: Value = client.delete(&format!("/tokens/{}", segment(&id)))?;
                client.show(&answer, |_| out("revoked\n"));
            }
        }
        Ok(())
    }
}
