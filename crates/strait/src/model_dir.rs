//! A checkpoint's files: in a directory, or part of this program.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use model::checkpoint::Checkpoint;
use model::problems::Problems;
use model::spec::{GenerationConfig, ModelSpec};
use text::{ChatTemplate, TextError, Tokenizer};

use crate::settings::ModelSource;

/// The largest tokenizers have some 20 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Where a checkpoint's files are, and those that say what it is.
pub(crate) struct ModelFiles {
    /// What it is called unless its owner says otherwise.
    pub name: String,
    pub config: Vec<u8>,
    pub generation: Option<Vec<u8>>,
    place: Place,
}

enum Place {
    Directory(PathBuf),
    Program,
}

/// What the tokenizer and the chat template are made of.
pub(crate) struct TextFiles {
    tokenizer: Vec<u8>,
    tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`, which goes before the one in tokenizer_config.json.
    template: Option<String>,
}

macro_rules! demo {
    ($file:literal) => {
        include_bytes!(concat!("../demo/", $file))
    };
}

impl ModelFiles {
    pub(crate) fn open(source: &ModelSource) -> anyhow::Result<Self> {
        match source {
            ModelSource::Demo => Ok(Self::demo()),
            ModelSource::Directory(dir) => Self::read(dir),
        }
    }

    fn demo() -> Self {
        Self {
            name: "demo".into(),
            config: demo!("config.json").to_vec(),
            generation: Some(demo!("generation_config.json").to_vec()),
            place: Place::Program,
        }
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            config: read_config(dir)?,
            name: name_of(dir),
            generation: read_optional(&dir.join("generation_config.json"))?,
            place: Place::Directory(dir.to_owned()),
        })
    }

    pub(crate) fn spec(&self) -> Result<ModelSpec, Problems> {
        ModelSpec::parse(&self.config)
    }

    /// Says nothing where there is no file.
    pub(crate) fn generation(&self) -> Result<GenerationConfig, Problems> {
        self.generation.as_deref().map_or(Ok(GenerationConfig::default()), GenerationConfig::parse)
    }

    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, Problems> {
        match &self.place {
            Place::Directory(dir) => Checkpoint::open(dir),
            Place::Program => Checkpoint::from_bytes(demo!("model.safetensors")),
        }
    }

    pub(crate) fn text(&self) -> anyhow::Result<TextFiles> {
        match &self.place {
            Place::Directory(dir) => TextFiles::read(dir),
            Place::Program => Ok(TextFiles {
                tokenizer: demo!("tokenizer.json").to_vec(),
                tokenizer_config: Some(demo!("tokenizer_config.json").to_vec()),
                template: None,
            }),
        }
    }
}

impl TextFiles {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = |name: &str| read_optional(&dir.join(name));
        let Some(tokenizer) = file("tokenizer.json")? else {
            bail!("{}: holds no tokenizer.json; fetch it beside config.json", dir.display());
        };
        let template = file("chat_template.jinja")?.map(String::from_utf8).transpose();
        Ok(Self {
            tokenizer,
            tokenizer_config: file("tokenizer_config.json")?,
            template: template.context("chat_template.jinja is not UTF-8; fetch it again")?,
        })
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, TextError> {
        Tokenizer::from_bytes(&self.tokenizer, self.tokenizer_config.as_deref())
    }

    pub(crate) fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, TextError> {
        match (&self.template, &self.tokenizer_config) {
            (Some(source), _) => ChatTemplate::new(source, tokenizer.special_tokens()).map(Some),
            (None, Some(config)) => ChatTemplate::from_config(config),
            (None, None) => Ok(None),
        }
    }

    pub(crate) fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        let template = self.template.as_ref().map(|template| template.as_bytes());
        [Some(self.tokenizer.as_slice()), self.tokenizer_config.as_deref(), template].into_iter().flatten()
    }
}

/// `config.json` of a directory, or the file itself; or what to do instead.
pub(crate) fn read_config(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) {
        bail!(
            "{shown}: GGUF files are not served by this version; give the directory of the safetensors checkpoint"
        );
    }
    if path.is_file() {
        bail!(
            "{shown}: this is a file; give the directory that holds config.json, tokenizer.json and safetensors"
        );
    }
    if !path.is_dir() {
        bail!(
            "{shown}: there is no such directory, and models are not downloaded by this version; fetch the \
             checkpoint with any tool (config.json, tokenizer.json, *.safetensors) and give its directory, or `demo`"
        );
    }
    match read_optional(&path.join("config.json"))? {
        Some(config) => Ok(config),
        None => bail!(
            "{shown}: holds no config.json; give the directory of a checkpoint in Hugging Face's layout"
        ),
    }
}

/// The directory's own name, also of `.` and of links' ends such as `snapshots/<hash>`.
fn name_of(dir: &Path) -> String {
    let whole = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    whole.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned())
}

/// `None` where there is no such file.
pub(crate) fn read_optional(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let bytes = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            bail!("{}: {} bytes, at most {FILE_BYTES_MAX} are read", path.display(), meta.len())
        }
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    bytes.map(Some).with_context(|| format!("{} cannot be read", path.display()))
}
