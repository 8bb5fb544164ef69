"""Networks of other projects: their layouts, preconditioning and SDEs."""
