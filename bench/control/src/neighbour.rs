//! A watch beside the controller's: when the API server tells of a change somebody who does nothing
//! but read it. What the controller's watch is later than this is the controller's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::changes::Ledger;
use crate::client::{Client, WHOLE};
use crate::legs::now;
use crate::node::{sequence, service_number};

/// Before a watch is begun again.
const PAUSE: Duration = Duration::from_millis(100);
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Watches for as long as the program runs. The API server ends watches that are too slow for it:
/// then another is begun, and what changed in between is left out of account.
pub(crate) fn start(client: Client, ledger: Arc<Ledger>) {
    tokio::spawn(async move {
        loop {
            let reason = match watch(&client, &ledger).await {
                Ok(()) => "the API server ended it".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            eprintln!("the watch beside the controller's begins again: {reason}");
            tokio::time::sleep(PAUSE).await;
        }
    });
}

async fn watch(client: &Client, ledger: &Ledger) -> Result<()> {
    let first = format!("{SLICES}?limit=1");
    let list = client.send(Method::GET, &first, WHOLE, WHOLE, Bytes::new()).await?;
    let list: Value = serde_json::from_slice(&list)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
    let path = format!("{SLICES}?watch=true&resourceVersion={version}");
    let mut body = client.follow(&path).await?;
    let mut waiting = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        waiting.extend_from_slice(&data);
        let mut from = 0;
        while let Some(length) = waiting[from..].iter().position(|byte| *byte == b'\n') {
            take(&waiting[from..from + length], ledger);
            from += length + 1;
        }
        waiting.drain(..from);
    }
    Ok(())
}

fn take(line: &[u8], ledger: &Ledger) {
    let number = || {
        let text = std::str::from_utf8(line).ok()?;
        let (_, rest) = text.split_once("\"name\":\"")?;
        Some((service_number(rest)?, sequence(line)?))
    };
    if let Some((service, sequence)) = number() {
        ledger.told(service, sequence, now());
    }
}
