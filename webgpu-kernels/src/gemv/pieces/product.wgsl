    // Statements: define sum$m_$r, this lane's share of the sum over k of x[m, k] * w[row$r, k].
    //
    // A lane takes whole blocks along k, STEPS of them at a time, so that many loads are in flight. With ONCE that is all of
    // its blocks. With EXACT no lane has fewer.
#for r in 0..ROWS
#for m in 0..BATCH
    var sum$m_$r = 0.0;
#endfor
#endfor
#ifdef SHARED_X
#ifndef ONCE
#include gemv/copy_x
#endif
#endif
#ifdef ONCE
    let tile = 0u;
    {
#else
    for (var tile = 0u; tile < params.blocks; tile += STEPS * TEAM) {
#endif
#for s in 0..STEPS
        let at$s = tile + $su * TEAM + lane;
#ifdef EXACT
        let b$s = at$s;
#else
        // A lane beyond the last block loads the last block and multiplies it by zero.
        let b$s = min(at$s, params.blocks - 1u);
#endif
#for r in 0..ROWS
        let block$s_$r = load_block(row$r, b$s, params.blocks);
#for m in 0..BATCH
        var part$s_$m_$r = 0.0;
#endfor
#endfor
#endfor
        // After the loads of the only blocks, so that these are in flight.
#ifdef SHARED_X
#ifdef ONCE
#include gemv/copy_x
#endif
#endif
#for s in 0..STEPS
#ifdef INTEGER
#include gemv/integer_step
#else
#include gemv/float_step
#endif
#for r in 0..ROWS
#for m in 0..BATCH
        sum$m_$r += block_scale(block$s_$r) * part$s_$m_$r;
#endfor
#endfor
#endfor
    }
