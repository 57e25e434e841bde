//! The derive behind `hm_exec::RunnerSet`.
