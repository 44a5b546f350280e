//! calib-data
