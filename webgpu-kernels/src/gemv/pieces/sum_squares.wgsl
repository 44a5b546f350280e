    // Statements: define `square`, this lane's share of the sum of `squares`.
    var square = 0.0;
#for s in 0..SQUARES
    square += square$s;
#endfor
