-- A change of a slot is numbered by the registry's version that it makes.
CREATE INDEX activation_slot ON activation (slot);
