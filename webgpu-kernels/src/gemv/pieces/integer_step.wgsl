        // Statements: set part$s_$m_$r to the product of block $s with row m of x in fixed point (fixed_point.wgsl).
#for m in 0..BATCH
        {
            var most = vec4<f32>(0.0);
#for w in 0..X_WORDS
            let left$w = x_quad($mu, at$s, 2u * $wu);
            let right$w = x_quad($mu, at$s, 2u * $wu + 1u);
            most = max(most, max(abs(left$w), abs(right$w)));
#endfor
            let unit = unit_of(most);
            let per_unit = 1.0 / unit;
            // Codes are stored with MAX_INT added. Subtract its product with x first.
            var start = vec2<i32>(0);
#for w in 0..X_WORDS
            let planes$w = planes_of(left$w, right$w, per_unit);
            start += plane_sums(planes$w);
#endfor
            start = vec2<i32>(FLOAT_BITS) - i32(MAX_INT) * start;
#for r in 0..ROWS
            {
                var products = start;
#for w in 0..X_WORDS
                products += plane_products(code_bytes(block$s_$r, $wu), planes$w);
#endfor
                part$s_$m_$r = unit * joined(products);
            }
#endfor
        }
#endfor
