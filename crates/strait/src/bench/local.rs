//! A server in this process, on its own threads, as `strait serve` runs one.

use std::future::pending;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, anyhow};
use server::{App, Options};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::serve;

/// It goes when dropped, whatever it is doing.
pub(crate) struct Local {
    pub url: String,
    runtime: Option<Runtime>,
}

impl Local {
    /// Returns when there is a model: `open` gives the app one and calls the function it is given, and may
    /// stay for as long as the engine runs.
    pub(crate) fn start(
        host: &str,
        port: u16,
        options: Options,
        open: impl FnOnce(&App, &dyn Fn()) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let runtime = serve::runtime()?;
        let listener = runtime.block_on(TcpListener::bind((host, port)));
        let listener = listener.with_context(|| format!("cannot listen on {host}:{port}"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = App::new(options);
        runtime.spawn(server::run(listener, app.clone(), pending()));
        let (tell, told) = mpsc::channel();
        thread::Builder::new().name("load".into()).spawn(move || {
            // Whoever waits has left if it cannot be told.
            let ready = || drop(tell.send(Ok(())));
            if let Err(error) = open(&app, &ready) {
                drop(tell.send(Err(error)));
            }
        })?;
        let local = Self { url, runtime: Some(runtime) };
        told.recv().map_err(|_| anyhow!("the model's thread ended before it was ready"))??;
        Ok(local)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
