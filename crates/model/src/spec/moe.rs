//! Which layers have experts, and how tokens are routed to them.

use super::family::Family;
use super::fields::Fields;
use super::{Mlp, MoeSpec, WIDTH_MAX};
use kernels::{RouteRule, Scoring};

const EXPERTS_MAX: usize = 1 << 12;

/// The MLP of each layer.
pub(super) fn read(fields: &mut Fields<'_>, family: Family, n_layers: Option<usize>) -> Option<Vec<Mlp>> {
    let dense = fields.integer("intermediate_size", 1..=1 << 20);
    let moe = experts(fields, family);
    let is_dense = dense_layers(fields, family, n_layers?, moe.is_some_and(|m| m.is_none()));
    let (intermediate_size, moe, is_dense) = (dense?, moe?, is_dense?);
    let layer = |dense: bool| match moe {
        Some(moe) if !dense => Mlp::Moe(moe),
        _ => Mlp::Dense { intermediate_size },
    };
    Some(is_dense.into_iter().map(layer).collect())
}

/// `[n_layers]`: whether the layer has a plain MLP.
fn dense_layers(
    fields: &mut Fields<'_>,
    family: Family,
    n_layers: usize,
    no_experts: bool,
) -> Option<Vec<bool>> {
    let want = format!("must be a list of {n_layers} strings, \"dense\" or \"sparse\"");
    let listed: Option<Vec<bool>> = fields.optional("mlp_layer_types", &want, |v| {
        let kinds = v.as_array().filter(|kinds| kinds.len() == n_layers)?;
        kinds.iter().map(|kind| ["sparse", "dense"].iter().position(|k| kind == k).map(|k| k == 1)).collect()
    })?;
    let leading = |k: usize| (0..n_layers).map(|i| i < k).collect::<Vec<_>>();
    let is_dense = match (family, listed) {
        _ if no_experts => {
            if listed_sparse(fields) {
                fields.refuse("n_routed_experts", "needed, for mlp_layer_types has sparse layers");
                return None;
            }
            leading(n_layers)
        }
        (Family::Glm4MoeLite, Some(listed)) => listed,
        (Family::Glm4MoeLite, None) => {
            if fields.value("first_k_dense_replace").is_some_and(|k| *k != 1) {
                fields.note("first_k_dense_replace is not read for glm4_moe_lite: without mlp_layer_types, layer 0 alone is dense");
            }
            leading(1)
        }
        (_, listed) => {
            let leading = leading(fields.integer("first_k_dense_replace", 0..=1 << 16)?);
            if listed.is_some_and(|listed| listed != leading) {
                fields.refuse("mlp_layer_types", "contradicts first_k_dense_replace; remove one of them");
                return None;
            }
            leading
        }
    };
    Some(is_dense)
}

fn listed_sparse(fields: &Fields<'_>) -> bool {
    let listed = fields.value("mlp_layer_types").and_then(|v| v.as_array());
    listed.is_some_and(|kinds| kinds.iter().any(|kind| kind == "sparse"))
}

/// `Some(None)`: the model has no experts.
fn experts(fields: &mut Fields<'_>, family: Family) -> Option<Option<MoeSpec>> {
    let Some(n_experts) = fields.integer_or_null("n_routed_experts", 1..=EXPERTS_MAX)? else {
        return Some(None);
    };
    let expert = fields.integer("moe_intermediate_size", 1..=1 << 17);
    let n_shared = shared_experts(fields);
    let rule = rule(fields, family, n_experts);
    let (intermediate_size, n_shared, rule) = (expert?, n_shared?, rule?);
    let shared_intermediate_size = n_shared * intermediate_size;
    if shared_intermediate_size > WIDTH_MAX {
        fields.refuse("n_shared_experts", format!("times moe_intermediate_size must be at most {WIDTH_MAX}"));
        return None;
    }
    Some(Some(MoeSpec { rule, intermediate_size, shared_intermediate_size }))
}

/// Null says that there are none; a missing key leaves it to the reader's default, so it is refused.
fn shared_experts(fields: &mut Fields<'_>) -> Option<usize> {
    if fields.has("n_shared_experts") {
        Some(fields.integer_or_null("n_shared_experts", 0..=256)?.unwrap_or(0))
    } else {
        fields.integer("n_shared_experts", 0..=256)
    }
}

fn rule(fields: &mut Fields<'_>, family: Family, n_experts: usize) -> Option<RouteRule> {
    let method = method(fields, family);
    let top_k = fields.integer("num_experts_per_tok", 1..=n_experts);
    let scale = fields.number("routed_scaling_factor", 1e-6..=1e6);
    let normalise = normalise(fields, family);
    let grouped = method.is_some_and(|m| m.grouped);
    let groups = if grouped { groups(fields, family, n_experts) } else { Some((1, 1)) };
    let (method, top_k, (n_groups, top_groups)) = (method?, top_k?, groups?);
    let within_reach = n_experts / n_groups * top_groups;
    if top_k > within_reach {
        fields.refuse(
            "num_experts_per_tok",
            format!(
                "the chosen groups hold {within_reach} experts; lower it or raise topk_group ({top_groups})"
            ),
        );
        return None;
    }
    Some(RouteRule {
        n_experts,
        top_k,
        scoring: method.scoring,
        n_groups,
        top_groups,
        normalise: normalise?,
        scale: scale? as f32,
    })
}

#[derive(Clone, Copy)]
struct Method {
    scoring: Scoring,
    grouped: bool,
}

fn method(fields: &mut Fields<'_>, family: Family) -> Option<Method> {
    // Defaults are those of the families' config classes in transformers.
    let (default_scoring, default_method) = match family {
        Family::V2 => ("softmax", "greedy"),
        Family::V3 | Family::Glm4MoeLite => ("sigmoid", "noaux_tc"),
    };
    let scoring = fields.text_or_null("scoring_func");
    let method = fields.text_or_null("topk_method");
    let (scoring, method) = (scoring?.unwrap_or(default_scoring), method?.unwrap_or(default_method));
    if scoring != default_scoring {
        fields.refuse("scoring_func", format!("only {default_scoring:?} is served in this family"));
        return None;
    }
    match (family, method) {
        (Family::V2, "greedy") => Some(Method { scoring: Scoring::Softmax, grouped: false }),
        (Family::V2, "group_limited_greedy") => Some(Method { scoring: Scoring::Softmax, grouped: true }),
        (Family::V2, _) => {
            fields.refuse(
                "topk_method",
                "with softmax scores only \"greedy\" and \"group_limited_greedy\" are served",
            );
            None
        }
        (_, "noaux_tc") => Some(Method { scoring: Scoring::Sigmoid, grouped: true }),
        (_, _) => {
            fields.refuse("topk_method", "with sigmoid scores only \"noaux_tc\" is served");
            None
        }
    }
}

fn normalise(fields: &mut Fields<'_>, family: Family) -> Option<bool> {
    if family != Family::V2 {
        return fields.flag("norm_topk_prob");
    }
    if fields.flag_or_null("norm_topk_prob")? == Some(true) {
        fields.note("norm_topk_prob is ignored in deepseek_v2, as transformers does");
    }
    Some(false)
}

/// `(n_group, topk_group)`
fn groups(fields: &mut Fields<'_>, family: Family, n_experts: usize) -> Option<(usize, usize)> {
    let mut read = |key: &str, range| match family {
        Family::Glm4MoeLite => Some(fields.integer_or_null(key, range)?.unwrap_or(1)),
        _ => fields.integer(key, range),
    };
    let n_groups = read("n_group", 1..=n_experts);
    let top_groups = read("topk_group", 1..=n_groups.unwrap_or(n_experts));
    let (n_groups, top_groups) = (n_groups?, top_groups?);
    if !n_experts.is_multiple_of(n_groups) {
        fields.refuse("n_group", format!("must divide n_routed_experts ({n_experts})"));
        return None;
    }
    if family != Family::V2 && n_groups > 1 && n_experts / n_groups < 2 {
        fields.refuse("n_group", "must leave two experts a group: groups score by their best two");
        return None;
    }
    Some((n_groups, top_groups))
}
