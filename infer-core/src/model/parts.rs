//! [`Parts`]: uploaded parameters, until a decoder is assembled from them.

use std::collections::HashMap;

use model_format::{Role, Weight};

use crate::{
    Result,
    ops::{Backend, Loading},
};

/// Uploaded parameters by their role in the decoder.
pub struct Parts<O: Backend> {
    matrices: HashMap<Role, O::Matrix>,
    vectors: HashMap<Role, O::Tensor>,
}

impl<O: Backend> Default for Parts<O> {
    fn default() -> Self {
        Parts { matrices: HashMap::new(), vectors: HashMap::new() }
    }
}

impl<O: Loading> Parts<O> {
    /// Uploads one parameter.
    pub fn add(&mut self, ops: &mut O, role: Role, weight: Weight) -> Result<()> {
        if role.is_matrix() {
            self.matrices.insert(role, ops.upload_matrix(role, weight)?);
        } else {
            let values = weight.into_f32();
            self.vectors.insert(role, ops.upload(1, values.len(), &values)?);
        }
        Ok(())
    }
}

impl<O: Backend> Parts<O> {
    /// Adds a matrix that is already on the device. Replaces an earlier one of the same role.
    pub fn add_matrix(&mut self, role: Role, matrix: O::Matrix) {
        self.matrices.insert(role, matrix);
    }

    /// Adds a vector that is already on the device.
    pub(crate) fn add_vector(&mut self, role: Role, vector: O::Tensor) {
        self.vectors.insert(role, vector);
    }

    /// Takes the matrix of a role. Panics if it was not added.
    pub fn take_matrix(&mut self, role: Role) -> O::Matrix {
        self.matrices.remove(&role).unwrap_or_else(|| panic!("no matrix was loaded for {role:?}"))
    }

    /// Takes the vector of a role that not every decoder has.
    pub fn find_vector(&mut self, role: Role) -> Option<O::Tensor> {
        self.vectors.remove(&role)
    }

    /// Takes the vector of a role. Panics if it was not added.
    pub fn take_vector(&mut self, role: Role) -> O::Tensor {
        self.find_vector(role).unwrap_or_else(|| panic!("no vector was loaded for {role:?}"))
    }
}
