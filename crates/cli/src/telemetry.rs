//! Who watches the requests of a server: `RUST_LOG`'s lines, and a collector of OpenTelemetry's where it is asked for.

use anyhow::Result;

use crate::output::UsageError;

/// What the protocol's own variable is called; it asks for spans as the option does.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The way to a collector, where there is one.
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    exporter: Option<exotherm_observe::otlp::Exporter>,
}

#[cfg(feature = "otlp")]
pub fn start(collector: Option<&str>) -> Result<Telemetry> {
    use anyhow::Context as _;
    use exotherm_observe::otlp::{Collector, Exporter};

    let asked = collector.map(str::to_string).or_else(|| std::env::var(ENDPOINT).ok());
    let Some(base) = asked.filter(|base| !base.is_empty()) else {
        exotherm_observe::subscribe();
        return Ok(Telemetry { exporter: None });
    };
    let collector = Collector::new(&base).map_err(UsageError)?;
    crate::output::note(format_args!("spans of requests go to {}", collector.url()));
    let exporter = Exporter::start(collector).context("cannot start the thread that sends spans")?;
    exotherm_observe::subscribe_and_send(&exporter);
    Ok(Telemetry { exporter: Some(exporter) })
}

#[cfg(not(feature = "otlp"))]
pub fn start(collector: Option<&str>) -> Result<Telemetry> {
    if collector.is_some() {
        let why = "--otlp needs a build with the cargo feature `otlp`: cargo build --release --features otlp";
        return Err(UsageError(why.into()).into());
    }
    // It is set for other programs, too, so it is no fault, but not passed over in silence.
    if std::env::var_os(ENDPOINT).is_some_and(|base| !base.is_empty()) {
        crate::output::note(format_args!(
            "note: {ENDPOINT} is set, but this build sends no spans; it takes the cargo feature `otlp`"
        ));
    }
    exotherm_observe::subscribe();
    Ok(Telemetry {})
}

impl Telemetry {
    /// Gives what is still to be sent a moment.
    pub fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = &self.exporter {
            exporter.flush(std::time::Duration::from_secs(3));
        }
    }
}
