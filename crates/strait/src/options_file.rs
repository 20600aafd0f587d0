//! The file of `--config`: what the flags and the environment leave open.

use std::collections::BTreeSet;
use std::path::Path;

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::flags::{ModelFlags, ServerFlags};

/// Flags and environment, as clap has merged them, over the file.
pub(crate) fn with_file(
    file: &Path,
    model: &ModelFlags,
    server: &ServerFlags,
) -> Result<(ModelFlags, ServerFlags), Failure> {
    let usage = |error: String| Failure::Usage(format!("{}: {error}", file.display()));
    let toml = Figment::from(Toml::file_exact(file));
    let in_file: Dict = toml.extract().map_err(|error| usage(discreet(&error)))?;
    let known: BTreeSet<String> =
        [keys(&ModelFlags::default()), keys(&ServerFlags::default())].concat().into_iter().collect();
    let unknown: Vec<&str> = in_file.keys().filter(|key| !known.contains(*key)).map(String::as_str).collect();
    if !unknown.is_empty() {
        let known: Vec<String> = known.into_iter().collect();
        return Err(usage(format!("no such option: {}; there are {}", unknown.join(", "), known.join(", "))));
    }
    Ok((over(&toml, model).map_err(usage)?, over(&toml, server).map_err(usage)?))
}

fn over<T: Serialize + DeserializeOwned>(toml: &Figment, typed: &T) -> Result<T, String> {
    let given = fields(typed).into_iter().filter(|(_, value)| is_given(value));
    let given = given.fold(toml.clone(), |figment, (key, value)| figment.merge((key, value)));
    given.extract().map_err(|error| discreet(&error))
}

/// What is wrong, without the lines and values of the file: one may be a key.
fn discreet(error: &figment::Error) -> String {
    if error.path.iter().any(|key| key == "api-key") {
        return "api-key: give a list of texts, as in [\"KEY\"]".to_owned();
    }
    let text = error.to_string();
    text.lines().filter(|line| !line.contains('|')).collect::<Vec<_>>().join("; ")
}

fn keys<T: Serialize>(flags: &T) -> Vec<String> {
    fields(flags).into_keys().collect()
}

fn fields<T: Serialize>(flags: &T) -> Dict {
    Value::serialize(flags).ok().and_then(Value::into_dict).unwrap_or_default()
}

/// Flags that were not typed are absent, empty or false.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Empty(..) => false,
        Value::Bool(_, set) => *set,
        Value::Array(_, items) => !items.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;
    use crate::settings::{ModelSettings, ServerSettings};

    fn in_file(toml: &str) -> Result<(ModelFlags, ServerFlags), Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let model = ModelFlags { threads: Some(3), ..ModelFlags::default() };
        with_file(file.path(), &model, &ServerFlags { port: Some(1), ..ServerFlags::default() })
    }

    #[test]
    fn flags_go_before_the_file() {
        let (model, server) =
            in_file("threads = 7\nport = 9\nblock-size = 16\nstrict-context = true\napi-key = ['a', 'b']")
                .unwrap();
        assert_eq!((model.threads, model.block_size, model.strict_context), (Some(3), Some(16), true));
        assert_eq!(
            (server.port, server.api_key),
            (Some(1), ["a", "b"].map(|key| Secret::from(key.to_owned())).to_vec())
        );
    }

    #[test]
    fn the_file_is_refused_by_key() {
        for (toml, expected) in [
            ("prot = 80", "prot"),
            ("max-num-seqs = 'many'", "max-num-seqs"),
            ("host = 5", "host"),
            ("port = ", "TOML parse error"),
        ] {
            let error = in_file(toml).unwrap_err();
            assert!(matches!(&error, Failure::Usage(what) if what.contains(expected)), "{toml}: {error}");
        }
    }

    #[test]
    fn no_error_shows_a_key() {
        for toml in [
            "api-key = 'hidden'",
            "api-key = [['hidden']]",
            "api-key = ['hidden",
            "api-key = [\n'hidden'\n'b']",
        ] {
            let error = in_file(toml).unwrap_err().to_string();
            assert!(error.contains("api-key") || error.contains("TOML parse error at line"), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn the_example_shows_every_option() {
        let example = include_str!("../../../configs/strait.example.toml");
        let shown: Vec<&str> = example.lines().filter_map(|line| line.strip_prefix('#')).collect();
        let options = shown.into_iter().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let toml = options.collect::<Vec<_>>().join("\n");
        let (model, mut server) = in_file(&toml).unwrap();
        assert!(server.api_key_file.take().is_some()); // there is no such file here
        ModelSettings::build(&model, ServerSettings::sequences(&server).unwrap()).unwrap();
        ServerSettings::build(&server).unwrap();
        let shown: Dict = Figment::from(Toml::string(&toml)).extract().unwrap();
        let all = [keys(&ModelFlags::default()), keys(&ServerFlags::default())].concat();
        assert_eq!(shown.into_keys().collect::<BTreeSet<_>>(), all.into_iter().collect());
    }
}
