        // Statements: add block $s to part$s_$m_$r. Each quad of x serves all rows.
#for i in 0..QUADS
        {
#for m in 0..BATCH
            let x$m = x_of($mu, at$s, $iu);
#endfor
#for r in 0..ROWS
            {
                let w = raw4(block$s_$r, $iu);
#for m in 0..BATCH
#for j in 0..4
                part$s_$m_$r = fma(w[$j], x$m[$j], part$s_$m_$r);
#endfor
#endfor
            }
#endfor
        }
#endfor
