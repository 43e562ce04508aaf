//! The rarely changed tables, in SQL that both databases understand: tenants,
//! credentials, servers, relays, tokens, revisions, activations, decisions, measures, quotas, cursors
//! and the shaping policy's state.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_mail::Timestamp;
use tidegate_queue::directory::{Credential, Relay, Server, Tenant, Token};
use tidegate_queue::measure::Measure;
use tidegate_queue::{
    Activation, DecisionQuery, DecisionRow, Life, QuotaUse, Revision, StoreError, StoreResult,
    Uploaded,
};

use crate::codec::{json, parse};
use crate::rows::{Kind, Rows, Stmt, Value};

const BODY: &[Kind] = &[Kind::Text];

async fn list<T: DeserializeOwned>(rows: &dyn Rows, sql: &'static str) -> StoreResult<Vec<T>> {
    let found = rows.select(sql.into(), Vec::new(), BODY).await?;
    found
        .iter()
        .map(|row| parse("registry", row.text(0)?))
        .collect()
}

async fn change(rows: &dyn Rows, sql: &'static str, args: Vec<Value>) -> StoreResult<u64> {
    let counts = rows.execute(vec![Stmt::new(sql, args)]).await?;
    Ok(counts.first().copied().unwrap_or(0))
}

const BUMP: &str = "UPDATE registry_version SET version = version + 1 WHERE id = 1";

/// A change that other gateways on the same database have to learn of.
async fn configure(rows: &dyn Rows, mut statements: Vec<Stmt>) -> StoreResult<u64> {
    statements.push(Stmt::new(BUMP, Vec::new()));
    let counts = rows.execute(statements).await?;
    Ok(counts.first().copied().unwrap_or(0))
}

async fn configure_one(rows: &dyn Rows, sql: &'static str, args: Vec<Value>) -> StoreResult<u64> {
    configure(rows, vec![Stmt::new(sql, args)]).await
}

pub(crate) async fn version(rows: &dyn Rows) -> StoreResult<u64> {
    let sql = "SELECT version FROM registry_version WHERE id = 1";
    let found = rows.select(sql.into(), Vec::new(), &[Kind::Int]).await?;
    found.first().map_or(Ok(0), |row| Ok(row.int(0)? as u64))
}

fn body<T: Serialize>(value: &T) -> StoreResult<Value> {
    json(value).map(Value::Text)
}

pub(crate) async fn tenants(rows: &dyn Rows) -> StoreResult<Vec<Tenant>> {
    list(rows, "SELECT body FROM tenant ORDER BY id").await
}

pub(crate) async fn put_tenant(rows: &dyn Rows, tenant: Tenant) -> StoreResult<()> {
    let args = vec![tenant.id.clone().into(), body(&tenant)?];
    let sql = "INSERT INTO tenant (id, body) VALUES ($1, $2)
               ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    configure_one(rows, sql, args).await.map(drop)
}

pub(crate) async fn remove_tenant(rows: &dyn Rows, id: String) -> StoreResult<bool> {
    let slot = format!("routing/{id}");
    let id = Value::Text(id);
    let slot = Value::Text(slot);
    let statements = vec![
        Stmt::new("DELETE FROM tenant WHERE id = $1", vec![id.clone()]),
        Stmt::new("DELETE FROM credential WHERE tenant = $1", vec![id.clone()]),
        Stmt::new("DELETE FROM server WHERE tenant = $1", vec![id.clone()]),
        Stmt::new("DELETE FROM token WHERE tenant = $1", vec![id.clone()]),
        Stmt::new("DELETE FROM decision WHERE tenant = $1", vec![id.clone()]),
        Stmt::new("DELETE FROM quota_use WHERE tenant = $1", vec![id]),
        Stmt::new("DELETE FROM activation WHERE slot = $1", vec![slot.clone()]),
        Stmt::new("DELETE FROM upload WHERE slot = $1", vec![slot]),
    ];
    Ok(configure(rows, statements).await? > 0)
}

pub(crate) async fn credentials(rows: &dyn Rows) -> StoreResult<Vec<Credential>> {
    list(rows, "SELECT body FROM credential ORDER BY name").await
}

pub(crate) async fn put_credential(rows: &dyn Rows, credential: Credential) -> StoreResult<()> {
    let args = vec![
        credential.user.clone().into(),
        credential.tenant.clone().into(),
        body(&credential)?,
    ];
    let sql = "INSERT INTO credential (name, tenant, body)
               SELECT $1, $2, $3 WHERE EXISTS (SELECT 1 FROM tenant WHERE id = $2)
               ON CONFLICT (name) DO UPDATE SET body = excluded.body
               WHERE credential.tenant = excluded.tenant";
    if configure_one(rows, sql, args).await? == 0 {
        return Err(StoreError::Conflict(format!(
            "user {:?}: tenant {:?} does not exist, or the name belongs to another tenant",
            credential.user, credential.tenant
        )));
    }
    Ok(())
}

pub(crate) async fn remove_credential(rows: &dyn Rows, user: String) -> StoreResult<bool> {
    let sql = "DELETE FROM credential WHERE name = $1";
    Ok(configure_one(rows, sql, vec![user.into()]).await? > 0)
}

pub(crate) async fn servers(rows: &dyn Rows) -> StoreResult<Vec<Server>> {
    list(rows, "SELECT body FROM server ORDER BY tenant, name").await
}

pub(crate) async fn put_server(rows: &dyn Rows, server: Server) -> StoreResult<()> {
    let args = vec![
        server.tenant.clone().into(),
        server.name.clone().into(),
        body(&server)?,
    ];
    let sql = "INSERT INTO server (tenant, name, body)
               SELECT $1, $2, $3 WHERE EXISTS (SELECT 1 FROM tenant WHERE id = $1)
               ON CONFLICT (tenant, name) DO UPDATE SET body = excluded.body";
    if configure_one(rows, sql, args).await? == 0 {
        return Err(StoreError::Conflict(format!(
            "server {:?}: tenant {:?} does not exist",
            server.name, server.tenant
        )));
    }
    Ok(())
}

pub(crate) async fn remove_server(
    rows: &dyn Rows,
    tenant: String,
    name: String,
) -> StoreResult<bool> {
    let sql = "DELETE FROM server WHERE tenant = $1 AND name = $2";
    Ok(configure_one(rows, sql, vec![tenant.into(), name.into()]).await? > 0)
}

pub(crate) async fn relays(rows: &dyn Rows) -> StoreResult<Vec<Relay>> {
    list(rows, "SELECT body FROM relay ORDER BY name").await
}

pub(crate) async fn put_relay(rows: &dyn Rows, relay: Relay) -> StoreResult<()> {
    let args = vec![relay.name.clone().into(), body(&relay)?];
    let sql = "INSERT INTO relay (name, body) VALUES ($1, $2)
               ON CONFLICT (name) DO UPDATE SET body = excluded.body";
    configure_one(rows, sql, args).await.map(drop)
}

pub(crate) async fn remove_relay(rows: &dyn Rows, name: String) -> StoreResult<bool> {
    let sql = "DELETE FROM relay WHERE name = $1";
    Ok(configure_one(rows, sql, vec![name.into()]).await? > 0)
}

pub(crate) async fn tokens(rows: &dyn Rows) -> StoreResult<Vec<Token>> {
    list(rows, "SELECT body FROM token ORDER BY tenant, id").await
}

pub(crate) async fn token(rows: &dyn Rows, hash: String) -> StoreResult<Option<Token>> {
    let sql = "SELECT body FROM token WHERE hash = $1";
    let found = rows.select(sql.into(), vec![hash.into()], BODY).await?;
    found
        .first()
        .map(|row| parse("registry", row.text(0)?))
        .transpose()
}

pub(crate) async fn put_token(rows: &dyn Rows, token: Token) -> StoreResult<()> {
    let args = vec![
        token.hash.clone().into(),
        token.id.clone().into(),
        token.tenant.clone().into(),
        body(&token)?,
    ];
    let sql = "INSERT INTO token (hash, id, tenant, body)
               SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT 1 FROM tenant WHERE id = $3)
               ON CONFLICT DO NOTHING";
    if configure_one(rows, sql, args).await? == 0 {
        return Err(StoreError::Conflict(format!(
            "token {:?}: tenant {:?} does not exist, or the name is taken",
            token.id, token.tenant
        )));
    }
    Ok(())
}

pub(crate) async fn remove_token(rows: &dyn Rows, id: String) -> StoreResult<bool> {
    let sql = "DELETE FROM token WHERE id = $1";
    Ok(configure_one(rows, sql, vec![id.into()]).await? > 0)
}

pub(crate) async fn put_revision(
    rows: &dyn Rows,
    revision: Revision,
    component: Bytes,
    uploaded: Uploaded,
) -> StoreResult<()> {
    let kept = Stmt::new(
        "INSERT INTO revision (digest, uploaded_at, body, component)
         VALUES ($1, $2, $3, $4) ON CONFLICT (digest) DO NOTHING",
        vec![
            revision.digest.clone().into(),
            revision.uploaded_at.as_millis().into(),
            body(&revision)?,
            Value::Blob(component.into()),
        ],
    );
    let filed = Stmt::new(
        "INSERT INTO upload (slot, digest, uploaded_at, body) VALUES ($1, $2, $3, $4)
         ON CONFLICT (slot, digest) DO UPDATE
         SET uploaded_at = excluded.uploaded_at, body = excluded.body",
        vec![
            uploaded.slot.clone().into(),
            uploaded.digest.clone().into(),
            uploaded.at.as_millis().into(),
            body(&uploaded)?,
        ],
    );
    configure(rows, vec![kept, filed]).await.map(drop)
}

pub(crate) async fn uploads(rows: &dyn Rows) -> StoreResult<Vec<Uploaded>> {
    list(
        rows,
        "SELECT body FROM upload ORDER BY uploaded_at, slot, digest",
    )
    .await
}

pub(crate) async fn remove_revision(rows: &dyn Rows, digest: String) -> StoreResult<bool> {
    let digest = Value::Text(digest);
    let statements = vec![
        Stmt::new(
            "DELETE FROM revision WHERE digest = $1",
            vec![digest.clone()],
        ),
        Stmt::new("DELETE FROM upload WHERE digest = $1", vec![digest]),
    ];
    Ok(configure(rows, statements).await? > 0)
}

pub(crate) async fn revisions(rows: &dyn Rows) -> StoreResult<Vec<Revision>> {
    list(
        rows,
        "SELECT body FROM revision ORDER BY uploaded_at, digest",
    )
    .await
}

pub(crate) async fn component(rows: &dyn Rows, digest: String) -> StoreResult<Option<Bytes>> {
    let sql = "SELECT component FROM revision WHERE digest = $1";
    let mut found = rows
        .select(sql.into(), vec![digest.into()], &[Kind::Blob])
        .await?;
    match found.first_mut() {
        None => Ok(None),
        Some(row) => Ok(Some(row.blob(0)?.into())),
    }
}

/// A change has the number of the registry's version that it makes: it grows in the order of the
/// commits, by whichever gateway, and is not used again after a history was removed.
pub(crate) async fn activate(rows: &dyn Rows, activation: Activation) -> StoreResult<()> {
    let args = vec![
        activation.slot.clone().into(),
        activation.digest.clone().into(),
        body(&Activation {
            seq: 0,
            ..activation.clone()
        })?,
    ];
    let sql = "INSERT INTO activation (id, slot, body)
               SELECT version, $1, $3 FROM registry_version
               WHERE id = 1 AND EXISTS (SELECT 1 FROM revision WHERE digest = $2)";
    let statements = vec![Stmt::new(BUMP, Vec::new()), Stmt::new(sql, args)];
    if rows.execute(statements).await?.get(1) != Some(&1) {
        return Err(StoreError::Conflict(format!(
            "no revision has the digest {:?}",
            activation.digest
        )));
    }
    Ok(())
}

pub(crate) async fn activations(rows: &dyn Rows) -> StoreResult<Vec<Activation>> {
    let sql = "SELECT id, body FROM activation ORDER BY id";
    let found = rows
        .select(sql.into(), Vec::new(), &[Kind::Int, Kind::Text])
        .await?;
    found
        .iter()
        .map(|row| {
            Ok(Activation {
                seq: row.int(0)? as u64,
                ..parse("registry", row.text(1)?)?
            })
        })
        .collect()
}

pub(crate) async fn keep_decisions(
    rows: &dyn Rows,
    decisions: Vec<DecisionRow>,
) -> StoreResult<()> {
    let statements = decisions
        .into_iter()
        .map(|row| {
            Stmt::new(
                "INSERT INTO decision (tenant, at, body) VALUES ($1, $2, $3)",
                vec![
                    row.tenant.into(),
                    row.at.as_millis().into(),
                    row.body.into(),
                ],
            )
        })
        .collect();
    rows.execute(statements).await.map(drop)
}

pub(crate) async fn decisions(
    rows: &dyn Rows,
    query: DecisionQuery,
) -> StoreResult<Vec<DecisionRow>> {
    let since = query.since.map_or(i64::MIN, Timestamp::as_millis);
    let mut args = vec![
        Value::Int(query.after as i64),
        Value::Int(since),
        Value::Int(i64::from(query.max)),
    ];
    let sql = match query.tenant {
        Some(tenant) => {
            args.push(tenant.into());
            "SELECT id, tenant, at, body FROM decision
             WHERE id > $1 AND at >= $2 AND tenant = $4 ORDER BY id LIMIT $3"
        }
        None => {
            "SELECT id, tenant, at, body FROM decision
             WHERE id > $1 AND at >= $2 ORDER BY id LIMIT $3"
        }
    };
    let kinds = &[Kind::Int, Kind::Text, Kind::Int, Kind::Text];
    let found = rows.select(sql.into(), args, kinds).await?;
    found
        .iter()
        .map(|row| {
            Ok(DecisionRow {
                id: row.int(0)? as u64,
                tenant: row.text(1)?.to_owned(),
                at: Timestamp::from_millis(row.int(2)?),
                body: row.text(3)?.to_owned(),
            })
        })
        .collect()
}

pub(crate) async fn sweep_decisions(
    rows: &dyn Rows,
    keep_from: Timestamp,
    most: u32,
) -> StoreResult<u64> {
    let args = vec![keep_from.as_millis().into()];
    let mut dropped = change(rows, "DELETE FROM decision WHERE at < $1", args).await?;
    let sql = "SELECT tenant FROM decision GROUP BY tenant HAVING count(*) > $1";
    let args = vec![Value::Int(i64::from(most))];
    for row in rows.select(sql.into(), args, BODY).await? {
        let sql = "DELETE FROM decision WHERE tenant = $1 AND id <=
                   (SELECT id FROM decision WHERE tenant = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)";
        let args = vec![row.text(0)?.to_owned().into(), Value::Int(i64::from(most))];
        dropped += change(rows, sql, args).await?;
    }
    Ok(dropped)
}

pub(crate) async fn measures(rows: &dyn Rows) -> StoreResult<Vec<Measure>> {
    list(rows, "SELECT body FROM measure ORDER BY id").await
}

pub(crate) async fn change_measures(
    rows: &dyn Rows,
    put: Vec<Measure>,
    remove: Vec<String>,
) -> StoreResult<()> {
    let mut statements = Vec::with_capacity(put.len() + remove.len());
    for measure in &put {
        let args = vec![measure.id.clone().into(), body(measure)?];
        let sql = "INSERT INTO measure (id, body) VALUES ($1, $2)
                   ON CONFLICT (id) DO UPDATE SET body = excluded.body";
        statements.push(Stmt::new(sql, args));
    }
    for id in remove {
        let sql = "DELETE FROM measure WHERE id = $1";
        statements.push(Stmt::new(sql, vec![id.into()]));
    }
    if statements.is_empty() {
        return Ok(());
    }
    rows.execute(statements).await.map(drop)
}

pub(crate) async fn quota_use(rows: &dyn Rows) -> StoreResult<Vec<QuotaUse>> {
    list(rows, "SELECT body FROM quota_use ORDER BY tenant").await
}

pub(crate) async fn set_quota_use(rows: &dyn Rows, used: Vec<QuotaUse>) -> StoreResult<()> {
    let mut statements = Vec::with_capacity(used.len());
    for used in &used {
        let sql = "INSERT INTO quota_use (tenant, body) VALUES ($1, $2)
                   ON CONFLICT (tenant) DO UPDATE SET body = excluded.body";
        let args = vec![used.tenant.clone().into(), body(used)?];
        statements.push(Stmt::new(sql, args));
    }
    if statements.is_empty() {
        return Ok(());
    }
    rows.execute(statements).await.map(drop)
}

pub(crate) async fn cursor(rows: &dyn Rows, exporter: String) -> StoreResult<u64> {
    let sql = "SELECT seq FROM export_cursor WHERE exporter = $1";
    let found = rows
        .select(sql.into(), vec![exporter.into()], &[Kind::Int])
        .await?;
    Ok(match found.first() {
        None => 0,
        Some(row) => row.int(0)? as u64,
    })
}

pub(crate) async fn set_cursor(rows: &dyn Rows, exporter: String, seq: u64) -> StoreResult<()> {
    let sql = "INSERT INTO export_cursor (exporter, seq) VALUES ($1, $2)
               ON CONFLICT (exporter) DO UPDATE SET seq = excluded.seq";
    let args = vec![exporter.into(), Value::Int(seq as i64)];
    change(rows, sql, args).await.map(drop)
}

pub(crate) async fn shaping_state(rows: &dyn Rows) -> StoreResult<Option<(u64, Bytes)>> {
    let sql = "SELECT version, state FROM shaping WHERE id = 1";
    let mut found = rows
        .select(sql.into(), Vec::new(), &[Kind::Int, Kind::Blob])
        .await?;
    match found.first_mut() {
        None => Ok(None),
        Some(row) => Ok(Some((row.int(0)? as u64, row.blob(1)?.into()))),
    }
}

pub(crate) async fn set_shaping_state(
    rows: &dyn Rows,
    expected: u64,
    state: Bytes,
) -> StoreResult<bool> {
    let state = Value::Blob(state.into());
    let changed = if expected == 0 {
        let sql = "INSERT INTO shaping (id, version, state) VALUES (1, 1, $1)
                   ON CONFLICT (id) DO NOTHING";
        change(rows, sql, vec![state]).await?
    } else {
        let sql = "UPDATE shaping SET version = version + 1, state = $1 WHERE version = $2";
        change(rows, sql, vec![state, Value::Int(expected as i64)]).await?
    };
    Ok(changed > 0)
}

fn life_name(node: u8) -> Value {
    Value::Text(format!("life/{node}"))
}

pub(crate) async fn life(rows: &dyn Rows, node: u8) -> StoreResult<Life> {
    let sql = "SELECT value FROM meta WHERE name = $1";
    let found = rows.select(sql.into(), vec![life_name(node)], BODY).await?;
    match found.first() {
        None => Ok(Life::default()),
        Some(row) => parse("life", row.text(0)?),
    }
}

pub(crate) async fn set_life(rows: &dyn Rows, node: u8, life: Life) -> StoreResult<()> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2)
               ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    change(rows, sql, vec![life_name(node), body(&life)?])
        .await
        .map(drop)
}

/// The methods of `Store` that are the same in both databases.
macro_rules! store_methods {
    () => {
        fn cursor(&self, exporter: String) -> Fut<'_, StoreResult<u64>> {
            Box::pin(registry::cursor(&self.rows, exporter))
        }

        fn set_cursor(&self, exporter: String, seq: u64) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::set_cursor(&self.rows, exporter, seq))
        }

        fn measures(&self) -> Fut<'_, StoreResult<Vec<Measure>>> {
            Box::pin(registry::measures(&self.rows))
        }

        fn change_measures(
            &self,
            put: Vec<Measure>,
            remove: Vec<String>,
        ) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::change_measures(&self.rows, put, remove))
        }

        fn quota_use(&self) -> Fut<'_, StoreResult<Vec<QuotaUse>>> {
            Box::pin(registry::quota_use(&self.rows))
        }

        fn set_quota_use(&self, used: Vec<QuotaUse>) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::set_quota_use(&self.rows, used))
        }

        fn shaping_state(&self) -> Fut<'_, StoreResult<Option<(u64, Bytes)>>> {
            Box::pin(registry::shaping_state(&self.rows))
        }

        fn set_shaping_state(&self, expected: u64, state: Bytes) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::set_shaping_state(&self.rows, expected, state))
        }

        fn life(&self, node: u8) -> Fut<'_, StoreResult<Life>> {
            Box::pin(registry::life(&self.rows, node))
        }

        fn set_life(&self, node: u8, life: Life) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::set_life(&self.rows, node, life))
        }
    };
}

/// The methods of `Registry`, the same in both databases.
macro_rules! registry_methods {
    () => {
        fn tenants(&self) -> Fut<'_, StoreResult<Vec<Tenant>>> {
            Box::pin(registry::tenants(&self.rows))
        }

        fn put_tenant(&self, tenant: Tenant) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::put_tenant(&self.rows, tenant))
        }

        fn remove_tenant(&self, id: String) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::remove_tenant(&self.rows, id))
        }

        fn credentials(&self) -> Fut<'_, StoreResult<Vec<Credential>>> {
            Box::pin(registry::credentials(&self.rows))
        }

        fn put_credential(&self, credential: Credential) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::put_credential(&self.rows, credential))
        }

        fn remove_credential(&self, user: String) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::remove_credential(&self.rows, user))
        }

        fn servers(&self) -> Fut<'_, StoreResult<Vec<Server>>> {
            Box::pin(registry::servers(&self.rows))
        }

        fn put_server(&self, server: Server) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::put_server(&self.rows, server))
        }

        fn remove_server(&self, tenant: String, name: String) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::remove_server(&self.rows, tenant, name))
        }

        fn relays(&self) -> Fut<'_, StoreResult<Vec<Relay>>> {
            Box::pin(registry::relays(&self.rows))
        }

        fn put_relay(&self, relay: Relay) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::put_relay(&self.rows, relay))
        }

        fn remove_relay(&self, name: String) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::remove_relay(&self.rows, name))
        }

        fn version(&self) -> Fut<'_, StoreResult<u64>> {
            Box::pin(registry::version(&self.rows))
        }

        fn tokens(&self) -> Fut<'_, StoreResult<Vec<Token>>> {
            Box::pin(registry::tokens(&self.rows))
        }

        fn token(&self, hash: String) -> Fut<'_, StoreResult<Option<Token>>> {
            Box::pin(registry::token(&self.rows, hash))
        }

        fn put_token(&self, token: Token) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::put_token(&self.rows, token))
        }

        fn remove_token(&self, id: String) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::remove_token(&self.rows, id))
        }

        fn put_revision(
            &self,
            revision: Revision,
            component: Bytes,
            uploaded: Uploaded,
        ) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::put_revision(
                &self.rows, revision, component, uploaded,
            ))
        }

        fn uploads(&self) -> Fut<'_, StoreResult<Vec<Uploaded>>> {
            Box::pin(registry::uploads(&self.rows))
        }

        fn remove_revision(&self, digest: String) -> Fut<'_, StoreResult<bool>> {
            Box::pin(registry::remove_revision(&self.rows, digest))
        }

        fn keep_decisions(&self, rows: Vec<DecisionRow>) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::keep_decisions(&self.rows, rows))
        }

        fn decisions(&self, query: DecisionQuery) -> Fut<'_, StoreResult<Vec<DecisionRow>>> {
            Box::pin(registry::decisions(&self.rows, query))
        }

        fn sweep_decisions(&self, keep_from: Timestamp, most: u32) -> Fut<'_, StoreResult<u64>> {
            Box::pin(registry::sweep_decisions(&self.rows, keep_from, most))
        }

        fn revisions(&self) -> Fut<'_, StoreResult<Vec<Revision>>> {
            Box::pin(registry::revisions(&self.rows))
        }

        fn component(&self, digest: String) -> Fut<'_, StoreResult<Option<Bytes>>> {
            Box::pin(registry::component(&self.rows, digest))
        }

        fn activate(&self, activation: Activation) -> Fut<'_, StoreResult<()>> {
            Box::pin(registry::activate(&self.rows, activation))
        }

        fn activations(&self) -> Fut<'_, StoreResult<Vec<Activation>>> {
            Box::pin(registry::activations(&self.rows))
        }
    };
}

pub(crate) use {registry_methods, store_methods};
