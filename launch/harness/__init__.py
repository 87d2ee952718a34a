"""EleutherAI's lm-evaluation-harness with our models: its tasks, its command line, retrieval on and off.

    python -m launch.harness --model_args workdir=runs/mine,retrieval=on --tasks lambada_openai --batch_size 8

model.py registers the model "retro" with lm_eval and answers its three kinds of request; __main__.py is the command above. Both
need the extra [harness]; nothing else imports lm_eval.
"""
