//! A checked checkpoint in the layouts that a backend computes with.

use crate::spec::{Mlp, ModelSpec};
use crate::tensors::name::{self, GatedMlp};
use crate::tensors::{Checked, Weight};
use kernels::{Backend, BlockScales, DType, KernelError, Matrix, Parts, Precision, Scoring};

/// The output head.
pub(crate) enum Head<W> {
    /// The embedding.
    Tied,
    Own(W),
}

pub(crate) struct Weights<B: Backend> {
    /// `[vocab, hidden]`
    pub embed: B::Weight,
    pub layers: Vec<Layer<B>>,
    /// `[hidden]`
    pub final_norm: B::Buffer,
    pub head: Head<B::Weight>,
}

pub(crate) struct Layer<B: Backend> {
    /// `[hidden]`
    pub attention_norm: B::Buffer,
    /// `[q_lora_rank or heads * qk_head_dim, then latent_width; hidden]`: the projections of a layer's
    /// input, in one pass over it
    pub qkv_a: B::Weight,
    pub query: Query<B>,
    /// `[kv_lora_rank]`
    pub latent_norm: B::Buffer,
    /// `[heads, kv_lora_rank, qk_nope]`: W_UK as the query absorbs it
    pub w_uk: B::Weight,
    /// `[heads, qk_nope, kv_lora_rank]`: W_UK as keys are expanded with it
    pub w_k: B::Weight,
    /// `[heads, v_head_dim, kv_lora_rank]`
    pub w_uv: B::Weight,
    /// `[hidden, heads * v_head_dim]`
    pub o: B::Weight,
    /// `[hidden]`
    pub mlp_norm: B::Buffer,
    pub mlp: MlpWeights<B>,
}

pub(crate) enum Query<B: Backend> {
    /// Ready in `qkv_a`'s output.
    Whole,
    Compressed {
        /// `[q_lora_rank]`
        norm: B::Buffer,
        /// `[heads * qk_head_dim, q_lora_rank]`
        b: B::Weight,
    },
}

pub(crate) struct Gated<B: Backend> {
    /// `[experts, 2 * intermediate, hidden]`
    pub gate_up: B::Weight,
    /// `[experts, hidden, intermediate]`
    pub down: B::Weight,
}

pub(crate) enum MlpWeights<B: Backend> {
    Dense(Gated<B>),
    Moe {
        /// `[experts, hidden]`, f32
        router: B::Weight,
        /// `[experts]`
        bias: Option<B::Buffer>,
        experts: Gated<B>,
        shared: Option<Gated<B>>,
    },
}

/// Reads tensors by name and packs them, telling `progress` how many bytes of the files are done.
struct Loader<'a, B: Backend> {
    spec: &'a ModelSpec,
    from: &'a Checked<'a>,
    backend: &'a mut B,
    precision: Precision,
    progress: &'a mut dyn FnMut(usize),
}

pub(crate) fn load<B: Backend>(
    spec: &ModelSpec,
    from: &Checked<'_>,
    backend: &mut B,
    precision: Precision,
    progress: &mut dyn FnMut(usize),
) -> Result<Weights<B>, KernelError> {
    let mut loader = Loader { spec, from, backend, precision, progress };
    let embed = loader.linear(&[name::EMBED])?;
    let layers = (0..spec.n_layers()).map(|i| loader.layer(i)).collect::<Result<_, _>>()?;
    let final_norm = loader.vector(name::FINAL_NORM)?;
    let head =
        if spec.tie_word_embeddings { Head::Tied } else { Head::Own(loader.linear(&[name::LM_HEAD])?) };
    Ok(Weights { embed, layers, final_norm, head })
}

impl<'a, B: Backend> Loader<'a, B> {
    fn tensor(&mut self, name: &str) -> Weight<'a> {
        let weight = self.from.weight(name);
        (self.progress)(weight.bytes.len());
        weight
    }

    fn matrix(&mut self, name: &str) -> Result<Matrix<'a>, KernelError> {
        let weight = self.tensor(name);
        let &[rows, cols] = weight.shape else {
            return Err(KernelError::Shape { op: "load", what: format!("{name} is {:?}", weight.shape) });
        };
        let [block_rows, block_cols] = self.spec.fp8_block.unwrap_or([1, 1]);
        let scales = weight.scales.map(|bytes| BlockScales { bytes, block_rows, block_cols });
        Matrix::new(weight.dtype, weight.bytes, [rows, cols], scales)
    }

    fn vector(&mut self, name: &str) -> Result<B::Buffer, KernelError> {
        let weight = self.tensor(name);
        let rows = weight.bytes.len() / weight.dtype.size();
        let values = Matrix::new(weight.dtype, weight.bytes, [1, rows], None)?.to_f32();
        self.backend.upload(&values)
    }

    /// Matrices of one input, one below the other.
    fn linear(&mut self, names: &[&str]) -> Result<B::Weight, KernelError> {
        let parts = names.iter().map(|name| self.matrix(name)).collect::<Result<_, _>>()?;
        self.backend.pack(&[Parts::Rows(parts)], self.precision)
    }

    fn gated(&mut self, names: &[GatedMlp]) -> Result<Gated<B>, KernelError> {
        let mut gate_up = Vec::with_capacity(names.len());
        let mut down = Vec::with_capacity(names.len());
        for name in names {
            gate_up.push(Parts::GateUp { gate: self.matrix(&name.gate)?, up: self.matrix(&name.up)? });
            down.push(self.matrix(&name.down)?.into());
        }
        let gate_up = self.backend.pack(&gate_up, self.precision)?;
        Ok(Gated { gate_up, down: self.backend.pack(&down, self.precision)? })
    }

    fn layer(&mut self, index: usize) -> Result<Layer<B>, KernelError> {
        let spec = self.spec;
        let at = |part: &str| name::layer(index, part);
        let (qkv_a, query) = if spec.q_lora_rank.is_some() {
            let norm = self.vector(&at(name::Q_A_NORM))?;
            let b = self.linear(&[&at(name::Q_B_PROJ)])?;
            (self.linear(&[&at(name::Q_A_PROJ), &at(name::KV_A_PROJ)])?, Query::Compressed { norm, b })
        } else {
            (self.linear(&[&at(name::Q_PROJ), &at(name::KV_A_PROJ)])?, Query::Whole)
        };
        let [w_uk, w_k, w_uv] = self.kv_b(&at(name::KV_B_PROJ))?;
        Ok(Layer {
            attention_norm: self.vector(&at(name::ATTENTION_NORM))?,
            qkv_a,
            query,
            latent_norm: self.vector(&at(name::KV_A_NORM))?,
            w_uk,
            w_k,
            w_uv,
            o: self.linear(&[&at(name::O_PROJ)])?,
            mlp_norm: self.vector(&at(name::MLP_NORM))?,
            mlp: self.mlp(index)?,
        })
    }

    /// The three readings of `kv_b_proj`, whose rows are, head by head, W_UK then W_UV.
    fn kv_b(&mut self, name: &str) -> Result<[B::Weight; 3], KernelError> {
        let d = self.spec.mla;
        let whole = self.matrix(name)?;
        let (nope, v) = (d.qk_nope_head_dim, d.v_head_dim);
        let keys = |h: usize| whole.rows_at(h * (nope + v), nope);
        let heads = 0..d.n_heads;
        let absorbed: Vec<Parts<'_>> = heads.clone().map(|h| keys(h).transposed().into()).collect();
        let expanding: Vec<Parts<'_>> = heads.clone().map(|h| keys(h).into()).collect();
        let values: Vec<Parts<'_>> = heads.map(|h| whole.rows_at(h * (nope + v) + nope, v).into()).collect();
        Ok([
            self.backend.pack(&absorbed, self.precision)?,
            self.backend.pack(&expanding, self.precision)?,
            self.backend.pack(&values, self.precision)?,
        ])
    }

    fn mlp(&mut self, index: usize) -> Result<MlpWeights<B>, KernelError> {
        let moe = match self.spec.layers[index] {
            Mlp::Dense { .. } => return Ok(MlpWeights::Dense(self.gated(&[name::dense_mlp(index)])?)),
            Mlp::Moe(moe) => moe,
        };
        let router = self.matrix(&name::layer(index, name::ROUTER))?;
        let bias = match moe.rule.scoring {
            Scoring::Softmax => None,
            Scoring::Sigmoid => Some(self.vector(&name::layer(index, name::ROUTER_BIAS))?),
        };
        let experts: Vec<GatedMlp> = (0..moe.rule.n_experts).map(|e| name::expert(index, e)).collect();
        let shared = (moe.shared_intermediate_size > 0)
            .then(|| self.gated(&[name::shared_experts(index)]))
            .transpose()?;
        Ok(MlpWeights::Moe {
            // In f32 always: rounding a score may choose another expert.
            router: self.backend.pack(&[router.into()], Precision::F32)?,
            bias,
            experts: self.gated(&experts)?,
            shared,
        })
    }
}

/// What a checkpoint is computed in unless its owner says otherwise: as precisely as it is stored.
/// FP8 fits into bf16 but for its scales, f16 does not.
pub fn default_precision(from: &Checked<'_>) -> Precision {
    match from.weight(name::EMBED).dtype {
        DType::F32 | DType::F16 => Precision::F32,
        DType::Bf16 | DType::F8E4M3 => Precision::Bf16,
    }
}
