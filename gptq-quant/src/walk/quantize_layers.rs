//! [`quantize_layers`]: the order of work. The embedding table and the head come first, then layer by layer.
//!
//! Within a layer the order follows the data: q, k and v (which share their inputs), then o, then gate and up, then down.
//! Each is quantized with the inputs that the quantized matrices before it produce.

use calib_data::TokenWindows;
use model_format::{Checkpoint, Param, Role, params::joined_params};

use super::{
    activations::InputCache, layer::matrix_roles, observe::Pass, state::Walk, time_left::TimeLeft, timings::Timings,
};
use crate::{
    calibrate::Calibrate,
    error::Result,
    input::source::unquantized_config,
    progress::Progress,
    settings::Settings,
    solve::{head_inputs::HeadInputs, hessian::Hessian},
    store::Store,
};

/// Quantizes every layer matrix of `checkpoint`, calibrated on `windows`, and hands each to `store`. With
/// [`Settings::quantize_ends`] or [`Settings::lm_head`], quantizes the embedding table and the head first.
///
/// Matrices that the store has are not computed again. The others are the same, bit for bit, as in an uninterrupted run.
pub async fn quantize_layers<O: Calibrate>(
    ops: O,
    checkpoint: &dyn Checkpoint,
    windows: &TokenWindows,
    settings: &Settings,
    progress: &mut dyn Progress,
    store: &mut dyn Store,
) -> Result<Timings> {
    let config = unquantized_config(checkpoint)?;
    settings.check(checkpoint, &config)?;
    // Known if the model wrote all of the text itself.
    let head = HeadInputs::joined(&store.head_inputs()?, windows.len(), config.hidden_size);
    let time_left = TimeLeft::plan(&config, settings, head.is_some(), |param| store.has(param))?;
    let mut walk = Walk::new(ops, checkpoint, &config, windows, settings, progress, time_left)?;
    let done = all_layers(&mut walk, store, head).await;
    // Store the last solved matrix even after an error.
    done.and(walk.store_pending(store))?;
    Ok(walk.timings)
}

/// Does everything except storing the last matrix. `head`: the Hessian of the head's inputs, if known.
async fn all_layers<O: Calibrate>(walk: &mut Walk<'_, O>, store: &mut dyn Store, head: Option<Hessian>) -> Result<()> {
    let config = walk.config;
    let list = joined_params(config);
    let param = |role: Role| list.iter().find(|p| p.role == role).expect("the list has every role");
    let table = walk.quantize_ends(store, param, head).await?;
    walk.begin_layers(table).await?;
    for layer in 0..config.num_hidden_layers {
        walk.enter(layer)?;
        let (params, is_last) = (matrix_roles(layer).map(param), layer + 1 == config.num_hidden_layers);
        if walk.settings.true_sequential {
            one_layer(walk, store, params, is_last).await?;
        } else {
            one_layer_at_once(walk, store, params, is_last).await?;
        }
        walk.finish_stage();
    }
    Ok(())
}

/// Quantizes the matrices of a layer one after another, each with the inputs that the quantized ones before it produce.
async fn one_layer<O: Calibrate>(
    walk: &mut Walk<'_, O>,
    store: &mut dyn Store,
    params: [&Param; 4],
    is_last: bool,
) -> Result<()> {
    let [qkv, attention_out, gate_up, down] = params.map(|param| param.role);
    let [qkv_param, attention_out_param, gate_up_param, down_param] = params;
    let pass = Pass { start: None, stop: Some(qkv) };
    let matrix = walk.quantize_matrix(store, qkv_param, Vec::new(), pass, InputCache::Unused).await?;

    let pass = Pass { start: None, stop: Some(attention_out) };
    let matrix = walk.quantize_matrix(store, attention_out_param, vec![matrix], pass, InputCache::Fill).await?;

    let pass = Pass { start: Some(attention_out), stop: Some(gate_up) };
    let gate_up_matrix = walk.quantize_matrix(store, gate_up_param, vec![matrix], pass, InputCache::Take).await?;

    let can_cache = walk.can_cache_inputs(down);
    let pass = Pass { start: Some(gate_up), stop: Some(down) };
    let cache = if can_cache { InputCache::Fill } else { InputCache::Unused };
    // Without a cache, the pass to the next layer runs gate and up again.
    let again = (!can_cache && !is_last).then(|| gate_up_matrix.clone());
    let matrix = walk.quantize_matrix(store, down_param, vec![gate_up_matrix], pass, cache).await?;

    match again {
        _ if is_last => Ok(()),
        None => walk.run(vec![matrix], Pass { start: Some(down), stop: None }, InputCache::Take, None).await,
        Some(again) => {
            let pass = Pass { start: Some(gate_up), stop: None };
            walk.run(vec![again, matrix], pass, InputCache::Unused, None).await
        }
    }
}

/// Quantizes the matrices of a layer with the inputs that its float matrices produce, then runs the quantized layer unless it is
/// the last.
async fn one_layer_at_once<O: Calibrate>(
    walk: &mut Walk<'_, O>,
    store: &mut dyn Store,
    params: [&Param; 4],
    is_last: bool,
) -> Result<()> {
    let mut solved = Vec::with_capacity(params.len());
    for (i, param) in params.iter().enumerate() {
        let before = params[..i].iter().map(|param| walk.float_matrix(param.role)).collect::<Result<_>>()?;
        let pass = Pass { start: None, stop: Some(param.role) };
        solved.push(walk.quantize_matrix(store, param, before, pass, InputCache::Unused).await?);
    }
    if is_last { Ok(()) } else { walk.run(solved, Pass::WHOLE, InputCache::Unused, None).await }
}
