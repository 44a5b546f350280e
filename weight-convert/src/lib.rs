//! weight-convert
