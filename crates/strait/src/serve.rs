//! `strait serve`: the port first, then the model, then answers until told to stop.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use server::{App, Build, Defaults, EngineFault, KvCacheInfo, Options, ServedModel};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::flags::{ModelFlags, ServerFlags};
use crate::load::{self, Loaded};
use crate::model_dir::ModelFiles;
use crate::settings::{ModelSettings, ServerSettings};
use crate::size::show;
use crate::{logging, machine, options_file, print};

const ORDER: &str = "\
Each option can be given as a flag, as STRAIT_* in the environment, or by the flag's name in the file of \
--config; flags go before the environment, and that before the file. Repeatable options are separated by \
commas in the environment.";

/// Serve a model behind the OpenAI API
#[derive(Debug, Args)]
#[command(after_help = ORDER)]
pub(crate) struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    server: ServerFlags,
    /// File of options (TOML); see configs/strait.example.toml
    #[arg(long, env = "STRAIT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the memory plan and end, without loading weights
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn main(flags: Flags) -> Result<(), Failure> {
    let start = Instant::now();
    let Flags { mut model, mut server, config, dry_run } = flags;
    if let Some(file) = config {
        (model, server) = options_file::with_file(&file, &model, &server)?;
    }
    let model = ModelSettings::build(&model, ServerSettings::sequences(&server)?)?;
    let server = ServerSettings::build(&server)?;
    if dry_run {
        return dry(&model);
    }
    logging::start(&server.log);
    let files = ModelFiles::open(&model.source)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(files, model, server, start));
    // Clients are done. Threads that still load or compute are not waited for.
    runtime.shutdown_background();
    ended
}

/// What HTTP is served on.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(machine::http_threads()).enable_all().build()
}

fn dry(settings: &ModelSettings) -> Result<(), Failure> {
    logging::start(&logging::quiet());
    let files = ModelFiles::open(&settings.source)?;
    let (spec, plan) = load::plan(&files, settings)?;
    print(&format!("{} ({}), {} layers\n{plan}", files.name, spec.model_type, spec.n_layers()))
}

async fn serve(
    files: ModelFiles,
    model: ModelSettings,
    server: ServerSettings,
    start: Instant,
) -> Result<(), Failure> {
    // Listened to before there is anything to stop: a signal while loading ends it in good order.
    let shutdown = stop_signal()?;
    let listener = TcpListener::bind((server.host.as_str(), server.port)).await;
    let listener = listener.with_context(|| format!("cannot listen on {}:{}", server.host, server.port))?;
    let url = format!("http://{}", listener.local_addr()?);
    tracing::info!("listening on {url}");
    let names = if server.names.is_empty() { vec![files.name.clone()] } else { server.names.clone() };
    let app = App::new(options(&server, &names));

    let (tell, loaded) = oneshot::channel();
    let loading = app.clone();
    thread::Builder::new().name("load".into()).spawn(move || {
        let outcome = load_and_run(&files, &model, &server, &loading, |loaded| {
            welcome(loaded, &url, &names[0], !server.api_keys.is_empty(), start);
        });
        let _ = tell.send(outcome); // nobody listens any more once the server has ended
    })?;

    until_ended(server::run(listener, app, shutdown), loaded).await
}

/// Until the server was told to stop, the model could not be loaded, or the engine died: whoever started
/// the process sees by its exit code that it must be started again.
async fn until_ended(
    serving: impl Future<Output = Result<(), EngineFault>>,
    loaded: oneshot::Receiver<anyhow::Result<()>>,
) -> Result<(), Failure> {
    let mut serving = pin!(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        loaded = loaded => loaded.context("loading has panicked; the lines above have the cause")??,
    }
    Ok(serving.await?)
}

pub(crate) fn options(settings: &ServerSettings, names: &[String]) -> Options {
    Options {
        names: names.to_vec(),
        api_keys: settings.api_keys.clone(),
        rate_limit: settings.rate_limit,
        connections_max: settings.connections_max,
        cors_origins: settings.cors_origins.clone(),
        tool_format: settings.tool_format.clone(),
        separate_reasoning: settings.separate_reasoning,
        grammar_bytes_max: settings.grammar_bytes_max,
        grammar_timeout: settings.grammar_timeout,
        body_bytes_max: settings.body_bytes_max,
        read_timeout: settings.read_timeout,
        stall_timeout: settings.stall_timeout,
        keep_alive: settings.keep_alive,
        grace: settings.grace,
        request_timeout: settings.request_timeout,
        step_timeout: settings.step_timeout,
        prefix_cache: settings.prefix_cache,
        build: build(),
        ..Options::default()
    }
}

fn build() -> Build {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    Build {
        version: env!("CARGO_PKG_VERSION").into(),
        commit: option_env!("GIT_COMMIT").unwrap_or("unknown").into(),
        build: format!("{profile} {}-{}", std::env::consts::ARCH, std::env::consts::OS),
    }
}

/// Loads, starts the engine on a thread of its own, and opens the service.
pub(crate) fn load_and_run(
    files: &ModelFiles,
    model: &ModelSettings,
    server: &ServerSettings,
    app: &App,
    ready: impl FnOnce(&Welcome),
) -> anyhow::Result<()> {
    let loaded = load::load(files, model, &|share| app.set_progress(share))?;
    let welcome = Welcome::of(&loaded, model.threads);
    let Loaded { model, text, eos_ids, generation, plan, fingerprint, device, policy, .. } = loaded;
    let defaults = Defaults {
        temperature: load::default_temperature(&generation),
        top_p: generation.top_p,
        top_k: generation.top_k,
        repetition_penalty: generation.repetition_penalty,
    };
    let options = engine::Options {
        max_waiting: server.max_waiting,
        max_waiting_tokens: server.max_waiting_tokens,
        sampled_vocab: text.tokenizer.vocab_size(),
        prefix_cache: server.prefix_cache,
        model_identity: fingerprint.clone(),
        policy,
    };
    // The server watches the engine. Its thread is not waited for: it may be stuck.
    let (engine, _) = engine::start(model, options);
    app.set_model(ServedModel {
        engine: Box::new(engine),
        tokenizer: text.tokenizer,
        chat_template: text.template,
        eos_ids,
        defaults,
        context_len: plan.limits.context_len,
        vocab_size: plan.limits.vocab_size,
        fingerprint,
        max_waiting: server.max_waiting,
        max_waiting_tokens: server.max_waiting_tokens,
        device,
        kv_cache: KvCacheInfo {
            block_len: plan.limits.block_len,
            n_blocks: plan.limits.n_blocks,
            dtype: plan.kv_dtype().into(),
        },
    });
    ready(&welcome);
    Ok(())
}

/// What the log says once the model is there.
pub(crate) struct Welcome {
    family: String,
    parameters: u64,
    dtype: &'static str,
    device: String,
    threads: usize,
    plan: crate::memory::MemoryPlan,
}

impl Welcome {
    fn of(loaded: &Loaded, threads: usize) -> Self {
        let spec = &loaded.spec;
        Self {
            family: spec.model_type.clone(),
            parameters: model::plan::Parameters::of(spec).total(),
            dtype: loaded.plan.precision.name(),
            device: loaded.device.clone(),
            threads,
            plan: loaded.plan.clone(),
        }
    }
}

fn welcome(of: &Welcome, url: &str, name: &str, with_key: bool, start: Instant) {
    let plan = &of.plan;
    let millions = of.parameters as f64 / 1e6;
    tracing::info!("model {name}: {}, {millions:.1} M parameters in {}", of.family, of.dtype);
    tracing::info!("device {}, {} threads", of.device, of.threads);
    tracing::info!(
        "memory: weights {}, KV pool {} in {} = {} tokens = {}, buffers {}",
        show(plan.weight_bytes),
        show(plan.kv_bytes),
        plan.kv_dtype(),
        plan.pool_tokens(),
        plan.sessions(),
        show(plan.buffer_bytes)
    );
    plan.notes.iter().for_each(|note| tracing::warn!("{note}"));
    tracing::info!("serving {name} at {url} after {} ms", start.elapsed().as_millis());
    let key = if with_key { " -H 'Authorization: Bearer KEY'" } else { "" };
    let body = format!(r#"{{"model":"{name}","messages":[{{"role":"user","content":"Hello"}}]}}"#);
    tracing::info!(
        "try: curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    );
}

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let mut signals = Signals::new().context("signals cannot be received")?;
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(async move {
        signals.next().await;
        let _ = stop.send(()); // the server has ended by itself
        signals.next().await;
        tracing::warn!("stopped at once by a second signal");
        std::process::exit(1);
    });
    Ok(async {
        // The sender is dropped only after it was used, or with the runtime.
        let _ = stopped.await;
    })
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // An error means that no signal will ever come.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::process::ExitCode;
    use std::time::Duration;

    use engine::testing::{FakeRunner, limits};
    use serde_json::json;

    use super::*;
    use crate::settings::ModelSource;

    /// How `strait serve` ends when the first request meets this model.
    fn ended(step_timeout: Duration, runner: impl FnOnce(FakeRunner) -> FakeRunner) -> Failure {
        let tokenizer = ModelFiles::open(&ModelSource::Demo).unwrap().text().unwrap().tokenizer().unwrap();
        let limits = engine::runner::Limits { vocab_size: tokenizer.vocab_size(), ..limits() };
        let runner = runner(FakeRunner::new(limits.clone()));
        let (engine, _) = engine::start(runner, engine::Options::default());
        let app = App::new(Options { step_timeout, ..Options::default() });
        app.set_model(ServedModel {
            engine: Box::new(engine),
            tokenizer: tokenizer.into(),
            chat_template: None,
            eos_ids: Vec::new(),
            defaults: Defaults::default(),
            context_len: limits.context_len,
            vocab_size: limits.vocab_size,
            fingerprint: "fp_test".into(),
            max_waiting: 1,
            max_waiting_tokens: usize::MAX,
            device: "none".into(),
            kv_cache: KvCacheInfo::default(),
        });
        let (tell, loaded) = oneshot::channel();
        tell.send(Ok(())).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let failure = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/v1/completions", listener.local_addr().unwrap());
            let asked = thread::spawn(move || {
                let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
                agent.post(url).send_json(json!({"prompt": [5], "max_tokens": 9})).unwrap().status()
            });
            let ended = until_ended(server::run(listener, app, pending()), loaded).await;
            assert_eq!(asked.join().unwrap(), 503);
            ended.unwrap_err()
        });
        runtime.shutdown_background();
        failure
    }

    #[test]
    fn a_dead_or_stuck_engine_ends_the_process_with_an_error() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        for (failure, cause) in [
            (ended(minute, |runner| runner.panic_at(1)), "the engine has stopped after a fault"),
            (ended(second, |runner| runner.delay(minute)), "no step has begun for 1 s"),
        ] {
            assert!(failure.to_string().contains(cause), "{failure}");
            assert_eq!(format!("{:?}", failure.exit_code()), format!("{:?}", ExitCode::from(1)));
        }
    }

    #[test]
    fn limits_reach_the_server() {
        let typed = ServerFlags {
            request_timeout: Some(8.0),
            step_timeout: Some(7.0),
            rate_limit: Some(6),
            max_connections: Some(5),
            ..ServerFlags::default()
        };
        let limits = |flags: &ServerFlags| {
            let options = options(&ServerSettings::build(flags).unwrap(), &[]);
            let times = (options.request_timeout.map(|t| t.as_secs()), options.step_timeout.as_secs());
            (times, options.rate_limit.map(|n| n.get()), options.connections_max)
        };
        assert_eq!(limits(&typed), ((Some(8), 7), Some(6), 5));
        assert_eq!(limits(&ServerFlags::default()), ((None, 300), None, 4096));
    }

    #[tokio::test]
    async fn what_cannot_be_loaded_ends_the_process() {
        let (tell, loaded) = oneshot::channel();
        tell.send(Err(anyhow::anyhow!("no such file"))).unwrap();
        let failure = until_ended(pending(), loaded).await.unwrap_err();
        assert_eq!(failure.to_string(), "no such file");
        let (tell, loaded) = oneshot::channel();
        drop(tell);
        assert!(until_ended(pending(), loaded).await.unwrap_err().to_string().contains("panicked"));
    }
}
