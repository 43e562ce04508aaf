//! `tidegate token`: what opens the admin API to a tenant, for its own slot.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, segment};
use super::table::{self, Table, cell, time_of};
use super::{Failure, Outcome, out};
use crate::secrets;

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token for a tenant; it is shown this once.
    #[command(
        after_help = "Examples:\n  tidegate token add --tenant acme --note \"build server\"\n  tidegate token add --tenant acme --file acme.token"
    )]
    Add {
        #[arg(long)]
        tenant: String,
        /// What it is for.
        #[arg(long, default_value = "")]
        note: String,
        /// Write it to a new file that only its owner can read, instead of showing it.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
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
            TokenCommand::Add { tenant, note, file } => {
                if let Some(file) = &file
                    && file.exists()
                {
                    // Before there is a token that nobody would have.
                    return Err(Failure::failed(
                        format!("{} is there already", file.display()),
                        "name another file, or remove that one",
                    ));
                }
                let mut answer: Value =
                    client.post("/tokens", &json!({"tenant": tenant, "note": note}))?;
                if let Some(file) = file {
                    let token = cell(&answer["token"]);
                    secrets::write_private(&file, &format!("{token}\n")).map_err(|e| {
                        let id = cell(&answer["id"]);
                        Failure::failed(
                            format!("{} can't be written: {e}", file.display()),
                            format!("make the token worthless (tidegate token revoke {id}) and add another"),
                        )
                    })?;
                    if let Some(shown) = answer.as_object_mut() {
                        shown.remove("token");
                        shown.insert("file".to_owned(), file.display().to_string().into());
                    }
                    client.show(&answer, |a| {
                        tokens(&json!([a])).print("");
                        out(&format!(
                            "\nThe token is in {}; its holder names it with --token-file or TIDEGATE_TOKEN_FILE.\n",
                            table::clean(&cell(&a["file"]))
                        ));
                    });
                    return Ok(());
                }
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
