"""File formats of other programs, one file per format; `conversion.convert` goes between them.

targets         every format that is written or read: begin here to add one
recognise       which format a source is in
delta_set       what every format is read into: one delta per layer
nearest, to_kronecker       the nearest Kronecker products of any matrix
layer_names     one name per layer, whoever wrote it; sgm_names: the original's block numbers
fused_layers    layers that are one in some files and several in others
metadata, published_sizes   which base models a file is for, by what it notes and by its layers
adapter_layers, layer_parts, needs_base, peft_folder, published, krona_file       adapters, read
lokr, lora      adapters, written; to_adapter: as one of ours, in memory
full_model, refs, ldm_layout, merged, full_finetune, model_pairs      whole models
destination, target_limits  what may be replaced, and what a target cannot hold
report          what the user chose about a conversion, and what came of it
"""
