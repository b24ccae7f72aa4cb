"""File formats of the neighbours, one file a format; `conversion.convert` goes between them.

recognise       which format a source is in
delta_set       what every format is read into: a delta a layer
deltas          Kronecker, low-rank and dense deltas, and the maths between them
nearest         the nearest Kronecker products of any matrix
layer_names     one name a layer, whoever wrote it; sgm_names: the original's block numbers
families        what tells the families of base models apart in the neighbours' files
krona_file, published, lokr, lora, peft_folder, full_finetune       read (and write) a format
full_model, ldm_layout, merged       whole models, in, out and merged
tensor_files, folders       safetensors, streaming; folders written whole or not at all
"""
