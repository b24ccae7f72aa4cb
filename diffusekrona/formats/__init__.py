"""File formats of other programs, one file per format; `conversion.convert` goes between them.

recognise       which format a source is in
delta_set       what every format is read into: one delta per layer
nearest, to_kronecker       the nearest Kronecker products of any matrix
layer_names     one name per layer, whoever wrote it; sgm_names: the original's block numbers
metadata        what the metadata of other programs' files says about base models
adapter_layers, layer_parts, needs_base, peft_folder, published, krona_file       adapters, read
lokr, lora      adapters, written
full_model, ldm_layout, merged, full_finetune, model_pairs            whole models
destination, target_limits  what may be replaced, and what a target cannot hold
"""
